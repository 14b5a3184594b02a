"""The study of time series: what is compared, how a rate is chosen, and what the committed rows say."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt

from peftlib.experiments.grid import execute
from peftlib.experiments.results import read_table
from peftlib.experiments.run import Place
from peftlib.studies import series_plots
from peftlib.studies.comparison import LEARNING_RATES, SEEDS
from peftlib.studies.series import APPROACHES, KNOWABLE, NAME, SEES, chosen, scores, searches, setting, study

TINY = dict(backbone="test_vit", weights="random", image_size=32, batch_size=4)
FEW = ("LoRA, mean over dates with days", "DEFLECT, set of dates")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder, calls = tmp_path_factory.mktemp("rows"), []

    def do(runs):
        calls.append(runs)
        return execute(runs, folder=folder, place=Place(accelerator="cpu", threads=1), progress=False)

    return study(do, FEW, seeds=(0, 1), length=4, epochs=4, **TINY), calls


def test_all_approaches_train_on_as_many_images():
    runs = {name: setting(name) for name in APPROACHES}
    seen = {
        name: run.epochs * run.data["length"] * (4 if run.data["view"] == "each" else 1) for name, run in runs.items()
    }
    assert len(set(seen.values())) == 1 and len({run.key for run in runs.values()}) == len(APPROACHES)
    assert set(SEES) == set(APPROACHES) and set(SEES.values()) == set(KNOWABLE)
    with pytest.raises(ValueError, match="approach 'TempCNN'; choose from LoRA, RGB of the best date"):
        setting("TempCNN")


def test_each_approach_tries_as_many_rates():
    runs = searches()
    assert len(runs) == 4 * len(APPROACHES) and all(run.stage == "search" for run in runs)
    for run in runs:
        assert run.lr in LEARNING_RATES[run.method.name]


def test_the_rate_is_that_of_the_lowest_validation_loss(done):
    rows, (searched, finals) = done
    loss = rows[(rows["stage"] == "search") & (rows["split"] == "val") & (rows["metric"] == "loss")]
    loss = loss.set_index("key")["value"]
    best = chosen(rows, FEW, length=4, epochs=4, **TINY)
    for name in FEW:
        view = APPROACHES[name][1]
        tried = {run.key: run.lr for run in searched if run.data["view"] == view}
        assert len(tried) == 4 and best[name].lr == tried[min(tried, key=loss.get)]
        assert {run.lr for run in finals if run.data["view"] == view} == {best[name].lr}
    assert {run.seed for run in finals} == {0, 1} and all(run.stage == "final" for run in finals)


def test_searches_never_open_what_is_tested(done):
    rows, _ = done
    assert set(rows.loc[rows["stage"] == "search", "split"]) == {"val"}
    assert rows["status"].eq("done").all()


def test_scores_know_their_approach(done):
    rows, _ = done
    table = scores(rows)
    assert table["approach"].tolist() == [name for name in APPROACHES for _ in SEEDS[:2] if name in FEW]
    assert table["percent"].between(0, 100).all() and set(table["sees"]) == {"dates and days"}
    test = rows[(rows["split"] == "test") & rows["metric"].isin(("fields", "scene_miou", "miou"))]
    assert len(test) == 3 * 4


def test_figures_and_tables(done):
    rows, _ = done
    figure = series_plots.series_figure(rows)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == list(FEW)
    table = series_plots.series_table(rows)
    assert list(table.index) == list(FEW) and set(table["knowable, %"]) == {"100"}
    both = scores(rows).pivot(index="seed", columns="approach", values="percent")
    mean = (both[FEW[1]] - both[FEW[0]]).mean()
    assert f": {mean:+.1f} (" in series_plots.series_gain_text(rows, FEW[1], FEW[0])
    scene = series_plots.scene_figure(0)
    assert len([ax for ax in scene.axes if ax.images]) == 9
    plt.close("all")


# --- the committed rows ---


def test_committed_rows_are_complete_and_of_this_plan():
    rows = read_table(NAME)
    assert set(rows["key"]) == {run.key for run in searches()} | {
        replace(run, seed=seed).key for run in chosen(rows).values() for seed in SEEDS
    }
    assert rows["status"].eq("done").all() and np.isfinite(rows["value"]).all()
    counts = scores(rows).groupby("approach")["seed"].nunique()
    assert set(counts.index) == set(APPROACHES) and (counts == len(SEEDS)).all()


def test_no_approach_tells_more_than_it_can_know():
    """But for luck: classes are not quite equally frequent, and a date is now and then in a turn."""
    found = scores(read_table(NAME))
    assert (found["percent"] <= found["sees"].map(KNOWABLE) + 4).all()


def test_what_the_notebook_says_it_found_is_in_the_rows():
    notebook = Path(__file__).parents[1] / "notebooks" / "09_beyond.ipynb"
    said = "".join(json.loads(notebook.read_text())["cells"][0]["source"])
    rows = read_table(NAME)
    told = scores(rows).groupby("approach")["percent"].agg(["mean", "std"])
    told = told["mean"].map("{:.1f}".format) + " ± " + told["std"].map("{:.1f}".format)
    for name, words in (
        ("DEFLECT, sequence of dates", "As a sequence of dates it tells {} %"),
        ("DEFLECT, set of dates", "read as a set of dates {}"),
        ("LoRA, dates as bands", "inflated to all dates {}"),
        ("DEFLECT, mean over dates", "{} with DEFLECT"),
        ("LoRA, mean over dates", "{} with LoRA"),
        ("DEFLECT, mean over dates with days", "DEFLECT gets to {}"),
        ("LoRA, mean over dates with days", "LoRA stays at {}"),
        ("LoRA, RGB of the best date", "green and blue {} %"),
        ("DEFLECT, set without days", "a set without its days {}"),
    ):
        assert words.format(told[name]) in said, name
    for first, second in series_plots.COMPARED[:1] + series_plots.COMPARED[2:3]:
        assert series_plots.series_gain_text(rows, first, second).split(": ")[-1] in said
    lora = chosen(rows)["LoRA, dates as bands"]
    assert lora.lr == min(LEARNING_RATES["lora"]) and "the lowest validated best" in said
