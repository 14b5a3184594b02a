"""Unseen regions: which runs are planned, what the rows of both tests say, and what is drawn of them."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from study_rows import TUNED, row_of
from toy_runs import do

import peftlib as pl
from peftlib.experiments.results import read_table, tidy
from peftlib.studies import region_plots
from peftlib.studies import regions as regions_study
from peftlib.studies.comparison import chosen
from peftlib.studies.regions import ELSEWHERE, HERE, REGIONS, region_runs, region_scores
from peftlib.studies.tables import label

METHODS = ("frozen", "full", "lora", "deflect")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def planned(methods=METHODS, seeds=(0, 1, 2)):
    return region_runs(read_table("quick"), *REGIONS["quick"][0], methods, seeds)


def made(drop=lambda run: 0.01 * run.seed, methods=METHODS, seeds=(0, 1, 2)) -> pd.DataFrame:
    """Tidy rows of runs that never ran."""
    rows = []
    for run in planned(methods, seeds):
        row = row_of(run, 0.4 + 0.01 * run.seed)
        moves = {"cka": 0.5, "cka_rgb": 1 - TUNED[run.method.name] / 200, "probe_before": 0.55}
        moves |= {"probe_after": 0.3, "probe_rgb": 0.4}
        unseen = {"miou": row["metrics"]["test"]["miou"] - drop(run), "accuracy": 0.95, "loss": 2.0}
        row["metrics"] |= {"unseen": unseen, "rgb": moves}
        rows.append(row)
    return tidy(rows)


# --- the plan ---


def test_all_methods_start_as_the_pretrained_model_with_rates_that_validation_chose():
    best = chosen(read_table("quick"), REGIONS["quick"][0][0])
    for run in planned(tuple(pl.METHODS), (0,)):
        name = run.method.name
        assert run.method.starts_as_pretrained or name == "vpt"
        assert getattr(run.method, "new_bands", "zero") == ("ignore" if name == "frozen" else "zero")
        assert name == "frozen" or (run.lr, run.head_lr) == (best[name].lr, best[name].head_lr)
        assert run.moved and run.stage == "final" and run.unseen == {"continents": ELSEWHERE}
        assert run.data["continents"] == HERE and run.data["length"] == 192
    assert [run.seed for run in planned()] == [0] * 4 + [1] * 4 + [2] * 4
    assert set(HERE) & set(ELSEWHERE) == set()


def test_other_profiles_hold_out_what_their_data_sets_hold_out():
    plans = {(profile, run.dataset): beside for profile, plan in REGIONS.items() for run, beside in plan}
    assert plans["paper", "sen1floods11"] == {"unseen": {"split": "bolivia"}}
    assert plans["paper", "ben"] == {"unseen": {"split": "ood"}}
    ((searched, beside),) = REGIONS["real"]
    runs = region_runs(read_table("real"), searched, beside, ["lora", "deflect"], [0])
    assert [run.folds for run in runs] == [3, 3]
    assert runs[0].data["longitudes"][1] == runs[0].unseen["longitudes"][0] == 10
    for searched, beside in REGIONS["paper"]:
        replace(searched, moved=True, **beside)


def test_where_no_search_is_committed_one_is_made():
    asked = []

    def execute(runs):
        asked.append(runs)
        return tidy([row_of(run, 1 - run.lr) for run in runs])

    rows = regions_study.study("paper", execute, ["frozen", "lora"], [0])
    searches, finals = [run for part in asked[:-1] for run in part], asked[-1]
    assert {run.stage for run in searches} == {"search"} and not any(run.moved or run.unseen for run in searches)
    assert {run.dataset for run in finals} == {"eurosat", "sen1floods11", "ben"} and len(finals) == 6
    assert {run.lr for run in finals if run.method.name == "lora"} == {1.25e-4}
    assert rows["stage"].eq("final").all()
    with pytest.raises(ValueError, match="profile='mars'; choose from quick, real, paper"):
        regions_study.study("mars", execute)


def test_a_study_of_tiny_runs_is_made_and_drawn(tmp_path):
    tiny = {"data": {"length": 4, "size": 32, "continents": HERE}, "backbone": "test_vit", "weights": "random"}
    tiny |= {"image_size": 32, "epochs": 1, "val_images": 0}
    rows = regions_study.study("quick", partial(do, folder=tmp_path), ["frozen", "deflect"], [0], tiny)
    assert (rows["status"] == "done").all() and set(rows["split"]) == {"val", "test", "unseen", "rgb"}
    table = region_scores(rows).set_index("method")
    assert table.loc["frozen", ["cka", "cka_rgb"]].tolist() == pytest.approx([1, 1])
    assert table.loc["deflect", "cka_rgb"] < 1
    assert "cannot be told" in " ".join(regions_study.findings(table.reset_index()))
    for draw in (region_plots.drop_figure, region_plots.moved_figure, region_plots.probe_figure):
        assert draw(table.reset_index()).axes


# --- what rows say ---


def test_the_drop_is_what_the_same_run_loses_elsewhere():
    rows = made(lambda run: 0.02 if run.method.name == "full" else 0.01 * run.seed)
    table = region_scores(rows.sample(frac=1, random_state=0))
    assert list(table["method"].unique()) == list(METHODS) and len(table) == 12
    full = table[table["method"] == "full"]
    assert full["seen"].tolist() == pytest.approx([40, 41, 42]) and full["drop"].tolist() == pytest.approx([2, 2, 2])
    assert table["probe_rgb"].tolist() == pytest.approx([40] * 12) and table["cka"].tolist() == pytest.approx(
        [0.5] * 12
    )
    means = regions_study.mean_of(table, "drop").set_index("method")
    assert means.loc["lora", ["mean", "std", "seeds"]].tolist() == pytest.approx([1, 1, 3])
    assert region_scores(rows, "accuracy")["drop"].tolist() == pytest.approx([4] * 12)


def test_methods_are_told_apart_where_they_differ_and_not_where_seeds_do():
    apart = region_scores(made(lambda run: 0.02 * METHODS.index(run.method.name)))
    same = region_scores(made(lambda run: 0.02 * run.seed))
    assert regions_study.chance_of_spread(apart) < 0.01 and regions_study.chance_of_spread(same) == 1
    assert np.isnan(regions_study.chance_of_spread(region_scores(made(seeds=(0,)))))
    assert any("they differ" in line for line in regions_study.findings(apart))
    assert any("do not tell them apart" in line for line in regions_study.findings(same))


def test_the_permutation_test_is_exact_enough():
    """Two methods, three blocks, one always ahead: 2 of the 8 ways to deal."""
    table = region_scores(made(lambda run: 0.01 * (run.method.name == "lora"), methods=("full", "lora")))
    assert regions_study.chance_of_spread(table) == pytest.approx(0.25, abs=0.02)


def test_ranks_are_correlated_over_methods_that_tune_something():
    table = region_scores(made())
    assert regions_study.rank_correlation(table, "tuned", "cka_rgb") == -1
    assert regions_study.rank_correlation(table.assign(drop=table["tuned"]), "tuned", "drop") == 1


def test_figures_show_the_rows():
    table = region_scores(made(lambda run: 0.02 * METHODS.index(run.method.name)))
    score, drop = region_plots.drop_figure(table).axes
    points = [bar[0].get_xydata()[0] for bar in drop.containers]
    assert sorted(x for x, _ in points) == pytest.approx([0, 2, 4, 6])
    assert sorted(bar[0].get_xydata()[0][0] for bar in score.containers)[-1] == pytest.approx(41)
    share, moved = region_plots.moved_figure(table).axes[:2]
    at = {bar.get_label(): bar[0].get_xydata()[0] for bar in moved.containers}
    assert at["Full fine-tuning"] == pytest.approx([TUNED["full"] / 200, 2])
    assert {bar.get_label() for bar in share.containers} == set(at) and len(at) == 4
    (probe,) = region_plots.probe_figure(table).axes
    assert {round(bar[0].get_xydata()[0][0]) for bar in probe.containers} == {30, 40}
    assert region_plots.score_table(table).loc["LoRA", "drop"] == "4.0 ± 0.0"


# --- the committed rows ---


@pytest.fixture(scope="module")
def committed():
    return region_scores(read_table("regions"))


@pytest.fixture(scope="module")
def notebook() -> tuple[str, str]:
    """Its first cell, and all that its cells printed."""
    cells = json.loads((Path(__file__).parents[1] / "notebooks" / "08_unseen_regions.ipynb").read_text())["cells"]
    printed = "".join(text for cell in cells for out in cell.get("outputs", []) for text in out.get("text", []))
    return "".join(cells[0]["source"]), printed


def test_the_committed_rows_are_those_of_the_plan(committed):
    rows = read_table("regions")
    seeds = sorted(committed["seed"].unique().tolist())
    runs = planned(tuple(committed["method"].unique()), tuple(seeds))
    assert {run.key for run in runs} == set(rows["key"]) and (rows["status"] == "done").all()
    assert len(committed) == len(runs)


def test_the_notebook_says_what_the_committed_rows_say(committed, notebook):
    head, printed = notebook
    for line in regions_study.findings(committed):
        assert line in printed
    numbers = {2: "two", 3: "three", 11: "eleven"}
    methods, seeds = committed["method"].nunique(), committed["seed"].nunique()
    assert f"for {numbers[methods]} methods with {numbers[seeds]} seeds each" in head
    assert (committed.groupby("method")["seed"].nunique() == seeds).all()
    drops = regions_study.mean_of(committed, "drop")
    assert (drops["mean"] < 1).all()  # "less than one point of mIoU for every method"
    assert regions_study.mean_of(committed, "seen")["std"].max() > drops["mean"].max()  # "moves a score by as much"
    assert regions_study.chance_of_spread(committed) > 0.05  # "do not tell methods apart"
    tuned = committed[committed["tuned"] > 0]
    assert (tuned["cka_rgb"] < 0.15).all()  # "below 0.15 for every method that tunes something"
    assert tuned.loc[tuned["method"] == "deflect", "tuned"].round(1).eq(0.7).all()
    assert regions_study.mean_of(tuned, "probe_rgb").set_index("method")["mean"].idxmax() == "full"
    rates = read_table("regions").drop_duplicates("key").set_index("key")["lr"]
    assert rates.idxmin() in tuned.index[tuned["method"] == "full"]  # "the lowest learning rate"


def test_the_notebook_says_what_the_rows_of_real_images_say(notebook):
    rows = read_table("regions_real")
    table = region_scores(rows)
    assert set(rows["status"]) == {"done"} and table.groupby("method")["seed"].nunique().to_dict() == dict.fromkeys(
        pl.METHODS, 3
    )
    head, printed = notebook
    for line in regions_study.findings(table):
        assert line in printed
    lost = regions_study.mean_of(table, "drop").set_index("method")
    least, most, noise = lost["mean"].idxmin(), lost["mean"].idxmax(), np.sqrt((lost["std"] ** 2).mean())
    words = f"between {lost['mean'].min():.1f} ({label(least)}) and {lost['mean'].max():.1f} points ({label(most)})"
    assert words in head and f"The seed alone moves one by {noise:.1f}" in head and most == "deflect"
    chance = regions_study.chance_of_spread(table)
    assert chance > 0.05 and f"in {100 * chance:.0f}% of draws" in head
