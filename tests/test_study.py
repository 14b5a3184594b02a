"""The comparison: each method searched alike, chosen on validation alone, scored at the end. Nothing is trained."""

import json
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise

import pandas as pd
import pytest

import peftlib as pl
from peftlib.data import DATASETS
from peftlib.experiments.config import Run
from peftlib.experiments.results import read_table, tidy, write_table
from peftlib.methods.base import IGNORE
from peftlib.studies import comparison as study
from peftlib.studies.comparison import (
    EXTRAS,
    EXTRAS_OF,
    SEEDS,
    SETTINGS,
    chosen,
    compare,
    finals,
    inputs,
    outline,
    rgb_only,
    search_inputs,
    search_rates,
    settings,
)

SETTING = Run(dataset="eurosat", method=pl.Frozen(), folds=3, image_size=28, epochs=2, head_lr=3e-3)
every_method = pytest.mark.parametrize("name", pl.METHODS)


def row(run: Run, score: float | None, loss: float = 1.0, test: float = 0.5) -> dict:
    """As ``peftlib.experiments.run`` writes it, under a key of the run alone; a failed one has no score."""
    key = sha256(json.dumps(run.facts(), sort_keys=True).encode()).hexdigest()[:16]
    found = {"key": key, "run": run.facts()}
    found |= {"versions": {}, "commit": "", "wall_s": 1.0, "status": "failed", "error": "ValueError: diverged"}
    if score is None:
        return found
    metrics = {"val": {"loss": loss, "macro_f1": score, "accuracy": 1 - score}}
    if run.stage == "final":
        metrics["test"] = {"loss": 1.0, "macro_f1": test, "accuracy": 0.1}
    done = {"metrics": metrics, "headline": "macro_f1", "task": "classification", "images": {"train": 9}, "tuned": 7}
    return found | done | {"status": "done", "error": ""}


def rows(runs, score=lambda run: 0.5, loss=lambda run: 1.0, **options) -> pd.DataFrame:
    return tidy([row(run, score(run), loss(run), **options) for run in runs])


# --- what is searched ---


def test_every_method_tries_as_many_learning_rates():
    runs = search_rates(SETTING)
    assert set(Counter(run.method.name for run in runs).values()) == {4}
    assert {run.method.name for run in runs} == set(pl.METHODS) and {run.stage for run in runs} == {"search"}
    for name in pl.METHODS:
        mine = [run for run in runs if run.method.name == name]
        rates = [run.head_lr if name == "frozen" else run.lr for run in mine]
        assert len(set(rates)) == 4 and all(1e-5 <= rate <= 0.1 for rate in rates)
        assert {run.method for run in mine} == {inputs(name)[0]}
        assert name == "frozen" or {run.head_lr for run in mine} == {SETTING.head_lr}


def test_learning_rates_are_of_methods_that_there_are():
    assert set(study.LEARNING_RATES) == set(pl.METHODS)
    for rates in study.LEARNING_RATES.values():
        ratios = [b / a for a, b in pairwise(rates)]
        assert len(rates) == 4 and all(2.9 < ratio < 4.1 for ratio in ratios)  # evenly spaced, rising


def test_rgb_alone_tries_the_same_rates():
    runs = search_rates(SETTING, rgb=True)
    every = [run for run in search_rates(SETTING) if run.method.name != "deflect"]
    assert [replace(run, method=pl.Frozen()) for run in runs] == [replace(run, method=pl.Frozen()) for run in every]
    assert [run.method for run in runs] == [rgb_only(run.method) for run in every]
    for method in (run.method for run in runs):
        assert method.new_bands == IGNORE and method.train_patch_embed is (method.name in ("full", "patch_embed"))


@every_method
def test_all_inputs_read_all_bands_and_differ(name):
    configs = inputs(name)
    assert len(set(configs)) == len(configs) == (1 if name == "deflect" else 2)
    assert {config.name for config in configs} == {name}
    assert name == "deflect" or all(config.new_bands != IGNORE for config in configs)


def test_other_inputs_are_tried_with_the_best_rate():
    goal = {"frozen": 1e-2, "full": 1e-4}
    found = rows(search_rates(SETTING), lambda run: 0.9 - abs(run.lr - goal.get(run.method.name, 2e-3)))
    runs = search_inputs(SETTING, found)
    assert [run.method for run in runs] == [other for name in pl.METHODS for other in inputs(name)[1:]]
    by_name = {run.method.name: run for run in runs}
    assert (by_name["lora"].lr, by_name["full"].lr, by_name["frozen"].head_lr) == (2e-3, 1e-4, 1e-2)
    assert {run.stage for run in runs} == {"search"} and {run.seed for run in runs} == {SETTING.seed}


def test_an_unknown_method_is_named_with_the_choices():
    with pytest.raises(ValueError, match=r"unknown method 'adapter'.*frozen.*deflect"):
        search_rates(SETTING, ["lora", "adapter"])


# --- what is chosen ---


def test_the_highest_headline_of_validation_is_chosen():
    runs = search_rates(SETTING, ["lora", "full"])
    found = rows(runs, lambda run: {1.25e-4: 0.2, 5e-4: 0.4, 2e-3: 0.7, 8e-3: 0.6}.get(run.lr, run.lr))
    best = chosen(found, SETTING, ["lora", "full"])
    assert (best["lora"].lr, best["full"].lr) == (2e-3, 3e-4)
    assert best["lora"] == replace(SETTING, method=inputs("lora")[0], lr=2e-3) and best["lora"].stage == "final"


def test_of_equals_the_lower_loss_is_chosen():
    runs = search_rates(SETTING, ["lora"])
    losses = {1.25e-4: 1.1, 5e-4: 1.0, 2e-3: 0.9, 8e-3: 0.95}
    found = rows(runs, lambda run: 0.5 + 1e-9 * run.lr, lambda run: losses[run.lr])
    assert chosen(found, SETTING, ["lora"])["lora"].lr == 2e-3


def test_the_head_rate_is_chosen_for_the_frozen_backbone():
    found = rows(search_rates(SETTING, ["frozen"]), lambda run: run.head_lr)
    assert chosen(found, SETTING, ["frozen"])["frozen"].head_lr == 1e-1


def test_rgb_alone_is_chosen_among_its_own():
    every, alone = search_rates(SETTING), search_rates(SETTING, rgb=True)
    found = rows(every + alone, lambda run: run.lr if run.method in {one.method for one in alone} else 1 - run.lr)
    assert found["status"].eq("done").all()
    best, best_rgb = chosen(found, SETTING), chosen(found, SETTING, rgb=True)
    assert set(best_rgb) == set(best) - {"deflect"}
    assert (best["lora"].lr, best_rgb["lora"].lr) == (1.25e-4, 8e-3)
    assert best_rgb["lora"].method == rgb_only(best["lora"].method)
    with pytest.raises(ValueError, match=r"no search rows of lora on eurosat with dinov2_small and RGB alone"):
        chosen(rows(every), SETTING, ["lora"], rgb=True)


def test_options_of_the_chosen_run_come_with_it():
    methods = [pl.Houlsby(positions=positions, new_bands="mean") for positions in (("mlp",), ("attention", "mlp"))]
    runs = [replace(SETTING, stage="search", method=method) for method in methods]
    found = rows(runs, lambda run: 0.9 if run.method.positions == ("mlp",) else 0.1)
    assert chosen(found, SETTING, ["houlsby"])["houlsby"].method == methods[0]


def test_test_scores_have_no_say():
    runs = search_rates(SETTING, ["lora"])
    found = rows(runs, lambda run: run.lr)
    poison = found.assign(split="test", value=[1e3 / (1 + i) for i in range(len(found))])
    final = rows([replace(run, stage="final") for run in runs], lambda run: 1 - run.lr, test=0.99)
    for others in (poison, final):
        for table in (pd.concat([others, found]), pd.concat([found, others])):
            assert chosen(table, SETTING, ["lora"])["lora"].lr == 8e-3


@pytest.mark.parametrize(
    "other",
    [
        {"dataset": "marida"},
        {"backbone": "dino_mc_small"},
        {"image_size": 224},
        {"epochs": 50},
        {"data": {"spatial": True}},
        {"folds": 5},
        {"batch_size": 4},
        {"seed": 1},
        {"weights": "random"},
    ],
)
def test_searches_in_other_settings_have_no_say(other):
    here = rows(search_rates(SETTING, ["lora"]), lambda run: run.lr)
    there = rows(search_rates(replace(SETTING, **other), ["lora"]), lambda run: 1 - run.lr)
    assert chosen(pd.concat([there, here]), SETTING, ["lora"])["lora"].lr == 8e-3
    with pytest.raises(ValueError, match="no search rows of lora on eurosat with dinov2_small"):
        chosen(there, SETTING, ["lora"])


def test_failed_searches_are_passed_over_and_missing_ones_named():
    runs = search_rates(SETTING, ["lora", "vpt"])
    found = rows(runs, lambda run: None if run.lr == 8e-3 or run.method.name == "vpt" else run.lr)
    assert chosen(found, SETTING, ["lora"])["lora"].lr == 2e-3
    with pytest.raises(ValueError, match="no search rows of vpt on eurosat with dinov2_small"):
        chosen(found, SETTING, ["lora", "vpt"])


def test_committed_rows_choose_the_same(tmp_path):
    runs = search_rates(SETTING)
    found = rows(runs, lambda run: None if run.lr == 3e-5 else 0.9 - abs(run.lr - 1.5e-3))
    path = write_table(found, tmp_path / "rows.csv")
    assert chosen(read_table(path), SETTING) == chosen(found, SETTING)


# --- what is run in the end ---


def best_of_all(rgb: bool = False) -> dict[str, Run]:
    return chosen(rows(search_rates(SETTING, rgb=rgb)), SETTING, rgb=rgb)


def test_finals_are_each_choice_with_each_seed():
    runs = finals(best_of_all().values(), (0, 5))
    assert len(runs) == 2 * len(pl.METHODS) and {run.stage for run in runs} == {"final"}
    assert Counter(run.seed for run in runs) == {0: len(pl.METHODS), 5: len(pl.METHODS)}


def test_extras_vary_what_they_name_and_nothing_else():
    best, best_rgb = best_of_all(), best_of_all(rgb=True)
    runs = {name: EXTRAS[name](best, best_rgb, SEEDS) for name in EXTRAS}
    counts = {name: len(found) for name, found in runs.items()}
    assert counts == dict(rgb=30, ablation=9, ranks=18, layers=12, starts=33)
    assert {(run.method.constrain, run.method.layers) for run in runs["ablation"]} == {
        (True, ()), (False, "all"), (True, "all"),
    }  # fmt: skip
    assert Counter(run.method.name for run in runs["ranks"]) == {"deflect": 9, "lora": 9}
    assert all(run.method.alpha == run.method.rank for run in runs["ranks"] if run.method.name == "lora")
    assert {(run.seed, run.init) for run in runs["starts"]} == {(0, start) for start in SEEDS}
    for name, run in [(name, run) for name, found in runs.items() for run in found]:
        before = (best_rgb if name == "rgb" else best)[run.method.name]
        assert replace(run, method=before.method, seed=before.seed, init=before.init) == before


# --- the whole ---


def fake(stages: list, score=lambda run: run.lr):
    """An ``execute`` that notes what it was given."""

    def execute(runs):
        stages.append(runs)
        return rows(runs, score)

    return execute


def test_the_stages_come_in_order_and_no_search_is_scored_on_test():
    stages = []
    table = compare(SETTING, fake(stages), seeds=(0, 1), extras=("rgb", "starts"))
    first, second, alone, last = stages
    searched = first + second + alone
    assert first == search_rates(SETTING) and {run.stage for run in searched} == {"search"}
    assert alone == search_rates(SETTING, rgb=True)
    assert second == search_inputs(SETTING, rows(first, lambda run: run.lr))
    best = chosen(rows(first + second, lambda run: run.lr), SETTING)
    best_rgb = chosen(rows(alone, lambda run: run.lr), SETTING, rgb=True)
    extra = finals(best_rgb.values(), (0, 1)) + EXTRAS["starts"](best, best_rgb, (0, 1))
    assert last == finals(best.values(), (0, 1)) + extra
    assert set(table[table["stage"] == "search"]["split"]) == {"val"}
    assert len(table.groupby("key")) == len({json.dumps(run.facts()) for run in searched + last})


def test_with_choices_given_nothing_is_searched():
    stages = []
    best, best_rgb = best_of_all(), best_of_all(rgb=True)
    compare(SETTING, fake(stages), ["lora"], (0,), extras=("rgb",), best=best, best_rgb=best_rgb)
    assert stages == [finals([best["lora"], best_rgb["lora"]], (0,))]


def test_extras_of_methods_that_are_not_compared_are_left_out():
    stages = []
    compare(SETTING, fake(stages), ["lora"], (0,), extras=tuple(EXTRAS))
    assert {run.method.name for runs in stages for run in runs} == {"lora"} and len(stages[-1]) == 3


def test_unknown_extras_are_refused_before_anything_runs():
    stages = []
    with pytest.raises(ValueError, match=r"extras=\['speed'\]; choose from rgb, ablation, ranks, layers, starts"):
        compare(SETTING, fake(stages), extras=("rgb", "speed"))
    assert stages == []


@pytest.mark.parametrize("profile", SETTINGS)
def test_an_outline_has_as_many_runs_as_the_comparison(profile):
    stages, extras = [], EXTRAS_OF[profile]
    compare(SETTING, fake(stages), extras=extras)
    planned = outline(SETTING, tuple(pl.METHODS), SEEDS, extras, search=True)
    assert Counter(run.stage for run in planned) == Counter(run.stage for runs in stages for run in runs)


@pytest.mark.parametrize("profile", SETTINGS)
def test_settings_are_well_formed(profile):
    found = settings(profile)
    assert len(found) == len(SETTINGS[profile]) * len(study.BACKBONES[profile])
    for setting in found:
        cls = DATASETS[setting.dataset]
        assert setting.backbone in pl.BACKBONES and setting.stage == "final" and set(setting.data) <= {"length", "size"}
        assert setting.image_size % (14 if setting.backbone == "dinov2_small" else 16) == 0
        assert not setting.tile or cls.task == "segmentation"


def test_settings_can_be_changed_and_refuse_what_they_do_not_have():
    (setting,) = settings("paper", ["mados"], ["dino_mc_small"], {"dino_mc_small": "w.pth"}, epochs=2)
    assert (setting.dataset, setting.backbone) == ("mados", "dino_mc_small")
    assert (setting.weights, setting.epochs) == ("w.pth", 2)
    with pytest.raises(ValueError, match=r"'fast'; choose from quick, real, paper"):
        settings("fast")
    with pytest.raises(ValueError, match=r"'real' has no data sets \['mados'\]; it has eurosat, marida"):
        settings("real", ["mados"])
