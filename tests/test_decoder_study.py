"""Decoders and metadata: what is run, and that gains are differences of equal runs."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from matplotlib import pyplot as plt
from scipy.stats import ttest_1samp
from study_rows import row_of
from toy_runs import do, toy, write_eurosat

import peftlib as pl
from peftlib.experiments.config import Run
from peftlib.experiments.results import read_table, tidy
from peftlib.studies import decoder_plots
from peftlib.studies.comparison import OTHER_RATES, inputs, settings
from peftlib.studies.decoders import COMPARED, DECODERS, NAME, decoder_scores, gains, intervals, scores, study_runs
from peftlib.studies.notebooks import run_notebooks
from peftlib.studies.tables import label

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def planned(profile: str, dataset: str) -> list[Run]:
    (setting,) = settings(profile, [dataset])
    return study_runs(setting, {name: replace(setting, method=inputs(name)[0]) for name in COMPARED})


def value(run: Run) -> float:
    """UNet gains 0.02, metadata lose 0.01 and a bit for each seed."""
    return 0.4 + 0.02 * (run.decoder == "unet") - (0.01 + 0.001 * run.seed) * bool(run.metadata) + 0.03 * run.seed


@pytest.fixture(scope="module")
def found() -> pd.DataFrame:
    runs = planned("quick", "spectral_scenes") + planned("real", "marida") + planned("real", "eurosat")
    return scores(tidy([row_of(run, value(run)) for run in runs]))


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_each_question_changes_one_thing():
    simulated, real, labels = (
        planned(*which) for which in (("quick", "spectral_scenes"), ("real", "marida"), ("real", "eurosat"))
    )
    assert [len(runs) for runs in (simulated, real, labels)] == [
        4 * 3 * (3 + 2) + 2 * 3 * 3,
        4 * 3 * (3 + 1),
        4 * 3 * 2,
    ]
    assert {run.decoder for run in simulated if run.metadata} == {"linear"}
    assert {run.metadata for run in labels} == {(), ("location",)}
    described = [run for run in simulated if run.metadata]
    without = [replace(run, metadata=()) for run in described]
    assert all(run in simulated for run in without if run.method.name != "frozen")  # the same scenes without
    (rate,) = {run.lr for run in described if run.method.name == "frozen"}
    assert rate == OTHER_RATES[1]  # of the embedding, which the frozen backbone's own runs do not have


def test_gains_are_those_that_the_rows_were_made_with(found):
    unet = gains(found, "unet", "linear")
    assert set(unet["dataset"]) == {"spectral_scenes", "marida"} and len(unet) == 24 + 6
    assert unet["epochs"].value_counts().to_dict() == {6: 24, 18: 6}
    assert unet["gain"].round(6).eq(2).all()
    metadata = gains(found, "metadata", "")
    assert len(metadata) == 36 and metadata.groupby("seed")["gain"].mean().round(6).tolist() == [-1.0, -1.1, -1.2]
    assert set(decoder_scores(found)["decoder"]) == set(DECODERS)


def test_intervals_are_students(found):
    draws = [1.0, 2.5, -0.5, 3.0]
    table = pd.DataFrame({"dataset": "a", "epochs": 1, "method": "lora", "gain": draws})
    row = intervals(table).iloc[0]
    low, high = ttest_1samp(draws, 0).confidence_interval(0.95)
    assert (row["mean"], row["low"], row["high"], row["runs"]) == pytest.approx((1.5, low, high, 4))
    alone = intervals(table[:1]).iloc[0]
    assert (alone["low"], alone["high"]) == (-float("inf"), float("inf"))


def test_figures_show_every_run(found):
    figure = decoder_plots.decoders_figure(found)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["spectral_scenes, 6 epochs", "spectral_scenes, 18 epochs", "marida, 6 epochs"]
    points = [[x for line in ax.lines for x in line.get_xdata()] for ax in figure.axes]
    assert [len(ax) for ax in points] == [4 * 3 * 3, 2 * 3 * 3, 4 * 3 * 3]
    assert figure.legends[0].get_texts()[-1].get_text() == label("deflect")
    figure = decoder_plots.gains_figure(found, "metadata", "", "points")
    assert len(figure.axes) == 3
    dots = [line for line in figure.axes[0].lines if line.get_markersize() == 4]
    assert sorted(x for line in dots for x in line.get_xdata()) == pytest.approx([-1.2] * 4 + [-1.1] * 4 + [-1.0] * 4)


def test_without_such_runs_a_figure_says_so(found):
    linear = found[(found["decoder"] == "linear") & (found["metadata"] == "")]
    figure = decoder_plots.gains_figure(linear, "unet", "linear", "points")
    assert "no runs that differ in unet" in figure.texts[0].get_text()


def test_the_whole_study_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTLIB_DATA", str(write_eurosat(tmp_path)))
    setting = toy(dataset="spectral_scenes", data={"length": 2, "size": 16, "continents": ["africa"]}, epochs=1)
    best = {"deflect": replace(setting, method=pl.Deflect(rank=1))}
    table = do(study_runs(setting, best, ["deflect"], [0], ["linear", "unet", "upernet"]), tmp_path / "rows")
    assert (table["status"] == "done").all(), set(table["error"])
    found = scores(table)
    assert len(found) == 5 + 3 and len(gains(found, "metadata", "")) == 1
    assert gains(found, "upernet", "linear")["epochs"].tolist() == [1, 3]


def test_findings_of_the_notebook_rest_on_committed_rows():
    text = json.loads((NOTEBOOKS / "06_decoders_and_metadata.ipynb").read_text())["cells"][0]["source"]
    text, table = "".join(text), read_table(NAME)
    found = scores(table)
    assert set(table["status"]) == {"done"} and found.groupby(["dataset", "method"])["seed"].nunique().eq(3).all()
    large = [gains(found, decoder, "linear") for decoder in ("unet", "upernet")]
    parts = [intervals(part, ["dataset", "epochs"]).query("epochs == 6") for part in large]
    assert all((part["high"] < 0).all() and len(part) == 2 for part in parts)  # "stays far behind"
    parts += [intervals(part).query("epochs == 18") for part in large]
    longest = decoder_scores(found).query("dataset == 'spectral_scenes' and epochs == 18")
    longest = longest.groupby(["method", "decoder"])["percent"].mean()
    best = longest["lora", "upernet"], longest["deflect", "linear"]
    assert "LoRA with UPerNet {:.1f}, DEFLECT with the linear decoder {:.1f}".format(*best) in text
    assert best == (longest["lora"].max(), longest["deflect"].max())
    parts += [metadata := intervals(gains(found, "metadata", ""), ["dataset"])]
    for row in pd.concat(parts).itertuples():
        assert f"{row.mean:+.1f} ({row.low:+.1f} to {row.high:+.1f})" in text
    assert ((metadata["low"] < 0) & (metadata["high"] > 0)).all()


def test_the_notebook_runs_what_it_draws_when_asked_to(tmp_path, monkeypatch):
    """At a tiny size: one method, one seed."""
    monkeypatch.setenv("PEFTLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PEFTLIB_FIGURES", str(tmp_path / "figures"))
    wanted = {"rerun": "true", "methods": '["frozen"]', "epochs": "1"}
    (made,) = run_notebooks([NOTEBOOKS / "06_decoders_and_metadata.ipynb"], "quick", wanted)
    assert made.ran and len(made.figures) == 8
    assert len(list((tmp_path / "runs" / "rows").glob("*.json"))) == 5
