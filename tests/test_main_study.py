"""The main study: what it runs, in which order, and how it chooses rates."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from made_rows import MADE_KEY, TINY, made_up

import peftlib as pl
from peftlib.experiments.config import SEARCH, Experiment
from peftlib.experiments.grid import execute
from peftlib.experiments.results import scores
from peftlib.studies.main import EXPLORATORY, PLANS, PRIMARY, PROFILES, exploratory, study
from peftlib.studies.protocol import FACTOR, Plan, best_inside, search


@pytest.fixture(autouse=True)
def _without_data(monkeypatch):
    monkeypatch.setattr(Experiment, "key", MADE_KEY)


def scored_by(score):
    """In place of ``execute``: finished runs, each with the score that a function of the experiment gives."""

    def execute(experiments):
        runs, metrics = made_up(experiments)
        value = metrics["key"].map({one.key: score(one) for one in experiments})
        return runs, metrics.assign(value=np.where(metrics["metric"] == "loss", 1 - value, value))

    return execute


def at(rate) -> list[Experiment]:
    return [Experiment(dataset="eurosat", method=pl.LoRA(), lr=rate, role=SEARCH)]


@pytest.mark.parametrize(("best", "found"), [(2e-3, 2e-3), (8e-3, 8e-3), (3.2e-2, 3.2e-2), (1e-9, 1.25e-4 / FACTOR**3)])
def test_rates_are_tried_further_until_the_best_lies_inside(best, found):
    asked, rates = [], pl.LoRA.learning_rates
    score = scored_by(lambda one: asked.append(one.lr) or 1 / (1 + abs(np.log(one.lr / best))))
    chosen = best_inside(score, {"x": at}, {"x": rates}, 3)
    assert chosen["x"] == pytest.approx(found)
    inside = min(asked) < chosen["x"] < max(asked)
    assert inside or len(set(asked)) == len(rates) + 3


def test_a_rate_that_diverges_is_not_chosen():
    lost = scored_by(lambda one: np.nan if one.lr > 1e-3 else one.lr)
    assert best_inside(lost, {"x": at}, {"x": pl.LoRA.learning_rates}, 3)["x"] == 5e-4


def test_the_plan():
    plans = {name: replace(PLANS[name], precision="bf16-frozen") for name in ("eurosat", "spectral_scenes")}
    runs, _ = study(scored_by(lambda one: 0.5 + 0.1 * (getattr(one.input, "start", "") == "mean")), plans)
    of = {role: part for role, part in runs[runs["dataset"] == "eurosat"].groupby("role")}
    further = {"precision", "plateau", "ablation", "rate", "rate of a part", "start", "labels"}
    assert set(of) == {SEARCH, "final", EXPLORATORY, *further}
    assert len(of["final"]) == 15 * len(PRIMARY) and len(of[EXPLORATORY]) == 5 * len(exploratory())
    assert len(of["precision"]) == 15 and set(of["precision"]["precision"]) == {"32-true"}
    assert set(of["plateau"]["steps"]) == {250, 1000} and len(of["plateau"]) == 2 * 5 * 5
    # Folds and seeds that choose are none of those that are scored; rows of primary cells come first.
    assert not set(of["final"]["repeat"]) & set(of[SEARCH]["repeat"])
    assert not set(of["final"]["seed"]) & set(of[SEARCH]["seed"])
    finals = runs[runs["role"] == "final"].reset_index()
    assert finals["dataset"].iloc[: 2 * 5 * len(PRIMARY)].value_counts().to_dict() == dict.fromkeys(plans, 50)
    order = ["final", "plateau", "ablation", EXPLORATORY]
    assert [role for role in dict.fromkeys(runs["role"]) if role in order] == order
    twice = runs[(runs["role"] == "plateau") & (runs["dataset"] == "spectral_scenes")]
    assert set(twice["steps"]) == {2000} and len(twice) == 3 * 5
    # The best start of the inflated kernels is taken, and full fine-tuning, where nothing is frozen, is by autocast.
    scored = runs[runs["role"].isin(["final", EXPLORATORY])]
    inflated = scored[scored["input"] == "inflated"]["input_options"].map(json.loads)
    assert len(inflated) and {options["start"] for options in inflated} == {"mean"}
    full = scored["method"] == "full"
    assert set(scored[full]["precision"]) == {"bf16-mixed"} and set(scored[~full]["precision"]) == {"bf16-frozen"}


def test_data_that_are_absent_are_named_and_the_rest_is_done(capsys):
    def execute(experiments):
        if experiments[0].dataset == "eurosat":
            raise FileNotFoundError("no data/eurosat")
        return made_up(experiments)

    runs, _ = study(execute, {name: PLANS[name] for name in ("eurosat", "spectral_scenes")}, dict(PRIMARY))
    assert set(runs["dataset"]) == {"spectral_scenes"}
    assert "left out eurosat: no data/eurosat" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="no data of eurosat"):
        study(execute, {"eurosat": PLANS["eurosat"]})


def test_a_data_set_whose_runs_all_fail_does_not_stop_the_others(capsys):
    def execute(experiments):
        runs, metrics = made_up(experiments)
        if experiments[0].dataset == "eurosat":
            return runs.assign(status="failed", error="ValueError: an odd chip"), metrics[:0]
        return runs, metrics

    cells = {name: PRIMARY[name] for name in ("RGB × LoRA", "EMB × LoRA")}
    runs, _ = study(execute, {name: PLANS[name] for name in ("eurosat", "spectral_scenes")}, cells)
    assert dict(runs.groupby("dataset")["role"].nunique()) == {"eurosat": 1, "spectral_scenes": 2}  # no final after it
    said = capsys.readouterr()
    assert "left out eurosat: all 12 runs failed: ValueError: an odd chip" in said.out
    assert "spectral_scenes: 32 of 32 runs; all data sets: 0:00:00 left" in said.err  # three by an extended search


def test_validation_chooses_and_loss_chooses_low():
    plan = replace(PLANS["eurosat"], extensions=0)
    for metric, gain in ((None, 1), ("loss", -1)):
        by_rate = scored_by(lambda one, gain=gain: 0.5 + gain * one.lr)
        _, chosen = search(by_rate, plan, {"LoRA": PRIMARY["RGB × LoRA"]}, metric)
        assert chosen["LoRA"].lr == pl.LoRA.learning_rates[-1 if gain > 0 else 0] and chosen["LoRA"].role == "final"


def test_quick_tries_the_two_middle_rates_of_each_part():
    asked = []

    def execute(experiments):
        asked.extend(experiments)
        return made_up(experiments)

    cells = {name: PRIMARY[name] for name in ("RGB × LoRA", "DEFLECT")}
    runs, _ = study(execute, PROFILES["quick"], cells)
    assert len(runs) == 8 and {one.lr for one in asked if one.method == pl.LoRA()} == set(pl.LoRA.learning_rates[1:3])


def test_only_finals_score_the_test_part(tmp_path, monkeypatch):
    monkeypatch.undo()
    cells = {name: PRIMARY[name] for name in ("RGB × LoRA", "EMB × Frozen")}
    plan = Plan(setting=TINY, searches=({"seed": 100},), finals=({"seed": 0}, {"seed": 1}), tries=2, extensions=0)
    run = partial(execute, folder=tmp_path, progress=False)
    runs, metrics = study(run, {"scenes": plan}, cells)
    assert set(runs["status"]) == {"done"} and len(runs) == 4 + 4
    splits = metrics.merge(runs, on="key").groupby("role")["split"].unique().map(set).to_dict()
    assert splits == {SEARCH: {"val"}, "final": {"val", "test"}}
    assert len(scores(runs, metrics)) == 4
    again, _ = study(run, {"scenes": plan}, cells)
    assert again.equals(runs)
