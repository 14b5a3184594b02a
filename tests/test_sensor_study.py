"""The study of sensors: who is trained on what, how other bands stand in, and what the committed rows say."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from test_notebooks import run_elsewhere

import peftlib as pl
from peftlib.experiments.config import Run
from peftlib.sensors.bands import band_set
from peftlib.studies import sensor_plots as beyond_plots
from peftlib.studies import sensors as sensor_study
from peftlib.studies.sensors import BY_BANDS, BY_WAVELENGTHS, OWN, SOURCE, SOURCE_BANDS, stand_ins, study

HLS = ("B02", "B03", "B04", "B8A", "B11", "B12")


def tiny(method, **data) -> Run:
    scenes = {"length": 2, "size": 32} | data
    few = dict(image_size=32, batch_size=2, val_images=1, epochs=1, backbone="test_vit", weights="random")
    bands = None if data else SOURCE_BANDS
    return Run(dataset="spectral_scenes", data=scenes, method=method, bands=bands, **few)


def test_what_is_trained_where():
    runs = sensor_study.plan((0, 1), sensor_study.SENSORS_SEEN, epochs=2)
    where = {(sensor_study.sensor_of(run), run.method) for run in runs}
    assert len(runs) == 2 * len(where) and {run.epochs for run in runs} == {2}
    on_source = {method for sensor, method in where if sensor == SOURCE}
    assert on_source == {BY_BANDS, BY_WAVELENGTHS, pl.LoRA()}
    assert {method for sensor, method in where if sensor == "landsat8"} == {BY_BANDS}
    assert all(run.bands == SOURCE_BANDS for run in runs if sensor_study.sensor_of(run) == SOURCE)
    assert sensor_study.plan((0,), ("hls",), length=4)[0].data == {"length": 4, "size": 56, "sensor": "hls"}


def test_missing_bands_are_filled_from_what_is_there():
    wanted, given = band_set(SOURCE_BANDS), band_set(HLS, "hls")
    nearest = stand_ins(wanted, given, "nearest")
    picked = dict(zip(SOURCE_BANDS, (HLS[i] for i in nearest.argmax(1)), strict=True))
    assert picked == {band: band for band in HLS} | {
        "B01": "B02",
        "B05": "B04",
        "B06": "B04",
        "B07": "B8A",
        "B08": "B8A",
    }
    assert (nearest.sum(1) == 1).all() and ((nearest == 0) | (nearest == 1)).all()
    line = torch.tensor(np.log(given.wavelengths)).float()
    between = (
        stand_ins(wanted, given, "interpolated") @ line
    )  # a spectrum linear in log wavelength is kept, but for ends
    expected = torch.tensor(np.log(wanted.wavelengths)).float().clamp_min(float(line.min()))
    torch.testing.assert_close(between, expected)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sensors")
    runs = [tiny(method) for method in (BY_BANDS, BY_WAVELENGTHS, pl.LoRA())] + [tiny(BY_BANDS, sensor="hls")]
    return runs, folder, study(runs, folder, unseen=("hls",))


def test_each_adapter_is_tested_as_it_can_read(small):
    _, _, rows = small
    assert tuple(rows.columns) == sensor_study.COLUMNS and rows["value"].between(0, 10).all()
    found = rows.groupby(["method", "sensor", "trained_on"])["reading"].agg(set)
    assert found["lora", "hls", SOURCE] == {"transfer"}
    assert found["deflect", "hls", SOURCE] == {"transfer", "refitted", "nearest", "interpolated"}
    assert found["deflect", "hls", "hls"] == found["deflect", SOURCE, SOURCE] == {OWN}
    assert {"miou", "pairs"} <= set(rows["metric"]) and not rows["metric"].str.startswith("iou_").any()


def test_a_finished_training_is_not_repeated(small):
    runs, folder, rows = small
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.ckpt")}
    again = study(runs, folder, unseen=("hls",))
    pd.testing.assert_frame_equal(again, rows)
    assert stamps and stamps == {path: path.stat().st_mtime_ns for path in folder.rglob("*.ckpt")}


def test_the_transferred_score_is_that_of_the_transferred_model(small):
    runs, folder, rows = small
    task = sensor_study.trained(runs[1], folder / runs[1].key)
    scenes = pl_scenes("hls")
    task.model = pl.transfer(task.model, scenes.bands, "hls")
    with torch.no_grad():
        right = torch.stack([(task(s["image"][None]).argmax(1)[0] == s["mask"]).float().mean() for s in scenes])
    chosen = rows.query("reading == 'transfer' and method == 'deflect' and metric == 'accuracy'")["value"]
    assert chosen.item() == pytest.approx(float(right.mean()), abs=1e-6)


def pl_scenes(sensor: str):
    from peftlib.data import load

    return load("spectral_scenes", split="test", length=2, size=32, sensor=sensor)


# --- figures and tables, of rows that a test makes ---


def made() -> pd.DataFrame:
    """Three seeds; by wavelengths 40, 41, 42 on HLS, by bands 38, 40, 39 with the nearest band."""
    rows = []
    for method, reading, values in (
        (BY_WAVELENGTHS, "transfer", (0.40, 0.41, 0.42)),
        (BY_BANDS, "nearest", (0.38, 0.40, 0.39)),
        (pl.LoRA(), "transfer", (0.20, 0.20, 0.20)),
        (BY_BANDS, OWN, (0.50, 0.50, 0.53)),
    ):
        options = json.dumps(method.options())
        facts = {"method": method.name, "options": options, "sensor": "hls", "reading": reading, "split": "test"}
        rows += [facts | {"seed": s, "metric": "miou", "value": v, "tuned": 1} for s, v in enumerate(values)]
    return pd.DataFrame(rows)


def test_the_table_goes_from_floor_to_ceiling():
    table = beyond_plots.table(made())
    assert list(table["HLS"]) == ["20.0 ± 0.0", "39.0 ± 1.0", "41.0 ± 1.0", "51.0 ± 1.7"]
    assert list(beyond_plots.table(made().query("seed == 0"))["HLS"]) == ["20.0", "38.0", "40.0", "50.0"]  # no ± nan
    assert [name.split(",")[0] for name in table.index] == [
        "LoRA",
        "by bands",
        "by wavelengths",
        "trained here: by bands",
    ]


def test_gains_are_paired_by_seed():
    mean, low, high = beyond_plots.gain(made(), "hls", ("wavelengths", "transfer"), ("bands", "nearest"))
    assert mean == pytest.approx(2) and high - mean == pytest.approx(mean - low)
    assert high - mean == pytest.approx(4.3027 * 1.0 / np.sqrt(3), abs=1e-3)  # differences 2, 1, 3


def test_bars_are_means_of_seeds():
    figure = beyond_plots.sensors_figure(made())
    (ax,) = figure.axes
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([20, 39, 41, 51])
    assert sorted(x for line in ax.lines for x in line.get_xdata())[:4] == pytest.approx([20, 20, 20, 38])
    plt.close(figure)


def test_spectra_are_those_of_the_scene():
    figure = beyond_plots.spectra_figure()
    assert [ax.get_title().split(":")[0] for ax in figure.axes] == ["Sentinel-2", "HLS", "Landsat 8", "180 bands"]
    hls = figure.axes[1].lines
    assert len(hls) == 4 and len(hls[0].get_xdata()) == 6 and len(hls[1].get_xdata()) == 16
    between = hls[0].get_ydata().min(), hls[0].get_ydata().max()
    assert between[0] <= hls[1].get_ydata().min() and hls[1].get_ydata().max() <= between[1]
    plt.close(figure)


# --- what is committed ---


NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "09_beyond.ipynb"


def test_committed_rows_are_complete_and_of_this_plan():
    rows = sensor_study.read()
    assert tuple(rows.columns) == sensor_study.COLUMNS and not rows.isna().any(axis=None)
    assert set(rows["key"]) == {run.key for run in sensor_study.plan(trained_on=sensor_study.SENSORS_SEEN)}
    counted = rows[rows["metric"] == "miou"].groupby(["sensor", "reading", "method", "options"])["seed"]
    assert (counted.agg(sorted).map(tuple) == (0, 1, 2)).all() and len(counted) == 23
    assert set(rows["sensor"]) == set(sensor_study.SENSORS_SEEN)


def test_what_the_notebook_says_it_found_is_in_the_rows():
    said = "".join(json.loads(NOTEBOOK.read_text())["cells"][0]["source"])
    rows = sensor_study.read()
    table, pairs = beyond_plots.table(rows), beyond_plots.table(rows, "pairs")
    approaches = ("by wavelengths", "by bands, nearest band fills in", "by bands, interpolated bands fill in")
    for name in (*approaches, "LoRA, RGB alone"):
        assert (
            " | ".join([name, *table.loc[name, ["HLS", "Landsat 8"]], *pairs.loc[name, ["HLS", "Landsat 8"]]]) in said
        )
    for name in ("by wavelengths", "by bands"):
        assert f"{table.loc[f'trained here: {name}', 'Sentinel-2']} {name}" in said
        assert f"{table.loc[f'trained here: {name}', '180 bands']} {name}" in said
    for sensor in ("HLS", "Landsat 8"):
        assert f"{table.loc['trained here: by bands', sensor]} on {sensor}" in said
    assert f"patch embedding {table.loc['trained here: LoRA, all bands', '180 bands']}" in said
    for sensor in ("hls", "landsat8"):
        for filled in ("nearest", "interpolated"):
            text = beyond_plots.gain_text(rows, sensor, ("wavelengths", "transfer"), ("bands", filled))
            assert text.split(": ")[-1] in said
    ceilings = [beyond_plots.gain(rows, s, ("wavelengths", "transfer"), ("bands", OWN)) for s in ("hls", "landsat8")]
    assert all(-1 < mean < 0 and low < 0 < high for mean, low, high in ceilings)
    for pair in ((("wavelengths", "transfer"), ("bands", "nearest")), (("bands", OWN), ("lora", OWN))):
        mean, low, high = beyond_plots.gain(rows, "hyperspectral", *pair)
        assert f"{mean:+.1f}, {low:+.1f} to {high:+.1f}" in said


@pytest.mark.weights
def test_the_notebook_does_its_study_anew_in_small(tmp_path):
    few = ("rerun=true", "length=2", "epochs=1", "sensors=['hls']")
    said = run_elsewhere(tmp_path, "09_beyond", *(word for text in few for word in ("--set", text)))
    assert said.startswith("done: 1 notebooks (1 executed), 8 figure files")
    assert len(list((tmp_path / "runs" / "sensors").glob("*/best.ckpt"))) == 3
