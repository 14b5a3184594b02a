"""The studies behind 06 to 09: what they plan, what they test elsewhere, and what is committed of them."""

import json
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from made_rows import MADE_KEY, TINY, made_up

import peftlib as pl
from peftlib.data import load
from peftlib.experiments import grid
from peftlib.experiments.config import SEARCH, Experiment
from peftlib.experiments.results import experiment_fields, read_study, scores
from peftlib.sensors.bands import band_set
from peftlib.studies import decoders, regions, sensors, series
from peftlib.studies.protocol import Plan
from peftlib.training.tasks import predict_batches

COMMITTED = {"decoders": 150, "regions": 66, "series": 77, "sensors": 24}  # runs
HLS = ("B02", "B03", "B04", "B8A", "B11", "B12")


@pytest.fixture
def planned(monkeypatch):
    """The experiments of a study, each with its fields; nothing runs."""
    monkeypatch.setattr(Experiment, "key", MADE_KEY)

    def plan(study, **options):
        runs, _ = study(made_up, **options)
        assert not runs.duplicated(["key", "role"]).any()
        return runs.assign(plan=[Experiment.from_dict(experiment_fields(row)) for _, row in runs.iterrows()])

    return plan


def test_decoders_start_from_rates_of_the_linear_one(planned):
    runs = planned(decoders.study)
    assert SEARCH not in set(runs["role"])  # those are the main study's
    seen = runs[runs["role"] == "decoder"]
    assert set(zip(seen["decoder"], seen["steps"], strict=True)) == set(product(decoders.DECODERS, decoders.STEPS))
    assert len(seen) == 9 * 5 * len(decoders.CELLS)
    assert set(seen.loc[seen["decoder"] != "linear", "head_lr"]) == {decoders.LARGE_HEAD_LR}


def test_metadata_are_compared_on_the_same_images(planned):
    runs = planned(decoders.study)
    one, other = (
        {(p.dataset, p.seed, p.input, p.method, json.dumps(p.data)): p for p in runs.loc[runs["role"] == role, "plan"]}
        for role in ("metadata", "without metadata")
    )
    assert one.keys() == other.keys() and len(one) == 2 * 5 * len(decoders.CELLS)
    assert all(p.metadata and not other[place].metadata for place, p in one.items())
    assert all(p.data["located"] for p in one.values() if p.dataset == "spectral_scenes")


def test_regions_test_what_nobody_trained_on(planned):
    runs = planned(regions.study)
    final = runs[runs["role"] == "final"]
    assert len(final) == 2 * 5 * len(regions.CELLS)
    assert len(runs[runs["role"] == "rate"]) == 5 * len(regions.MOVED) * len(regions.TIMES)
    for plan in final["plan"]:
        assert plan.rgb_drift and plan.unseen
        if plan.dataset == "spectral_scenes":
            assert not set(plan.data["continents"]) & set(plan.unseen["continents"])
        else:
            assert plan.data["longitudes"][1] <= plan.unseen["longitudes"][0] and plan.fold == plan.seed


def test_an_approach_is_the_role_of_its_finals(planned):
    runs = planned(series.study)
    assert set(runs["role"]) == {SEARCH, *series.APPROACHES}
    plans = {role: part["plan"].iloc[0] for role, part in runs.groupby("role")}
    assert plans["DEFLECT, set of dates"].input.order == "set"
    assert plans["DEFLECT, sequence of dates"].input.order == "sequence"
    bands = plans["DEFLECT, set without days"].bands
    assert "B08@4" in bands and not [name for name in bands if name.startswith(("cos", "sin"))]


def test_missing_bands_are_filled_from_what_is_there():
    wanted, given = band_set(sensors.SOURCE_BANDS), band_set(HLS, "hls")
    nearest = sensors.stand_ins(wanted, given, "nearest")
    picked = dict(zip(sensors.SOURCE_BANDS, (HLS[i] for i in nearest.argmax(1)), strict=True))
    other = {"B01": "B02", "B05": "B04", "B06": "B04", "B07": "B8A", "B08": "B8A"}
    assert picked == {band: band for band in HLS} | other
    assert (nearest.sum(1) == 1).all() and ((nearest == 0) | (nearest == 1)).all()
    line = torch.tensor(np.log(given.wavelengths)).float()  # a spectrum linear in log wavelength is kept, but for ends
    between = sensors.stand_ins(wanted, given, "interpolated") @ line
    torch.testing.assert_close(between, torch.tensor(np.log(wanted.wavelengths)).float().clamp_min(float(line.min())))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The study of sensors in small, one run of each and one other sensor."""
    folder = tmp_path_factory.mktemp("sensors")
    plan = Plan(setting=TINY, searches=({"seed": 100},), finals=({"seed": 0},), tries=1, extensions=0)
    names = ("DEFLECT by bands", "DEFLECT by wavelengths", "RGB × LoRA")
    options = dict(trained={"sentinel2": names, "hls": names[:1]}, plan=plan, folder=folder)
    return *sensors.study(partial(execute, folder=folder, progress=False), **options), folder


def execute(experiments, **options):
    """Searches are made up: what they choose is all that counts."""
    if all(one.role == SEARCH for one in experiments):
        return made_up(experiments)
    return grid.execute(experiments, **options)


def test_each_adapter_is_tested_as_it_can_read(small):
    runs, metrics, _ = small
    there = runs[runs["role"].ne(SEARCH) & runs["config"].str.contains("sentinel2")]
    found = metrics.merge(there, on="key").groupby("role")["split"].unique().map(set)
    assert found["DEFLECT by bands"] == {"val", "test", "hls, nearest", "hls, interpolated"}
    assert found["DEFLECT by wavelengths"] == {"val", "test", "hls, transfer", "hls, refitted"}
    assert found["RGB × LoRA"] == {"val", "test", "hls, transfer"}
    assert {"miou", "pairs"} <= set(metrics["metric"])


def test_the_transferred_score_is_that_of_the_transferred_model(small):
    runs, metrics, folder = small
    row = runs[runs["role"] == "DEFLECT by wavelengths"].iloc[0]
    experiment = Experiment.from_dict(experiment_fields(row))
    task = sensors.build_task(experiment, sensors.EarthData(*experiment.parts(), 2))
    sensors.restore(task, folder / "work" / row["key"] / sensors.LAST)
    scenes = load("spectral_scenes", split="test", sensor="hls", length=4, size=32)
    task.model = pl.transfer(task.model, scenes.bands, "hls")
    batch = {part: torch.stack([s[part] for s in scenes]) for part in ("image", "mask")}
    ((logits, truth),) = predict_batches(task, [batch])
    right = float((logits.argmax(1) == truth)[truth >= 0].float().mean())
    kept = metrics[metrics["key"].eq(row["key"]) & metrics["split"].eq("hls, transfer")].set_index("metric")["value"]
    assert kept["accuracy"] == pytest.approx(right, abs=1e-6)


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_runs_are_whole_and_are_experiments(name):
    runs, metrics = read_study(name)
    assert len(runs) == COMMITTED[name] and set(runs["status"]) == {"done"} and runs["key"].is_unique
    assert set(metrics["key"]) == set(runs["key"]) and np.isfinite(metrics["value"]).all()
    experiments = [Experiment.from_dict(experiment_fields(row)) for _, row in runs.iterrows()]
    assert [one.role for one in experiments] == list(runs["role"])
    final = runs[runs["role"] != SEARCH]
    assert len(scores(runs, metrics)) == len(final)
    same = [*("role", "dataset", "input", "input_options", "method", "options", "decoder", "steps", "lr"), "config"]
    seeds = final.groupby(same)["seed"].agg(sorted).map(tuple)
    assert (seeds == (0, 1, 2)).all()
