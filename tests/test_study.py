"""What rows of the main study are said to say, by ``contrasts`` and by notebook 05."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_rows import GAINS, MADE_KEY, primary_rows, row
from matplotlib import pyplot as plt

import peftlib as pl
from peftlib.experiments.config import Experiment
from peftlib.experiments.results import METRIC_COLUMNS, tables, write_study
from peftlib.studies.contrasts import (
    CONTRASTS,
    ablations,
    advice,
    contrasts,
    first_with_finals,
    searched,
)
from peftlib.studies.main import PRIMARY
from peftlib.studies.pooled import bootstrap, confusions, pooled

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "05_figures.ipynb"


# --- notebook 05 on made-up rows ---


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The notebook's names after it has run on rows whose differences are known."""
    folder, names = tmp_path_factory.mktemp("made"), {}
    write_study(*primary_rows(), folder / "rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTLIB_FIGURES", str(folder))
        patch.setattr(plt, "show", lambda: None)
        for cell in json.loads(NOTEBOOK.read_text())["cells"]:
            if cell["cell_type"] == "code":
                source = "".join(cell["source"])
                if "parameters" in cell["metadata"].get("tags", ()):
                    source += f"\nrows = [{str(folder / 'rows')!r}]"
                exec(source, names)
    yield names, folder
    plt.close("all")


def test_contrasts_are_said_as_the_rows_have_them(drawn):
    names, _ = drawn
    table = names["table"]
    assert len(table) == 2 * len(CONTRASTS) and (table["detectable"] > 0).all()
    assert set(table["n"]) == {15, 10}
    for r in table.itertuples():
        gap = GAINS[r.one] - GAINS[r.other]
        assert r.said == ("not settled" if abs(gap) < 1 else "ahead" if gap > 0 else "behind"), (r.one, r.other)
        assert (r.low < gap < r.high and r.p >= 0.05) or r.said != "not settled"
    # The better LoRA without EMB, as validation has it.
    assert set(table.loc[table["question"] == "DEFLECT, or LoRA without EMB?", "other"]) == {"RGB × LoRA"}
    lines = list(advice(table))
    assert len(lines) == len(CONTRASTS)
    assert lines[0].endswith("EMB × LoRA: ahead on EuroSAT, simulated scenes")


def test_a_contrast_without_rows_is_left_out():
    runs, metrics = primary_rows()
    lost = runs["options"].str.contains('"constrain": false') & runs["dataset"].eq("eurosat")
    table = contrasts(runs[~lost], metrics)
    assert len(table) == 2 * len(CONTRASTS) - 1
    single = contrasts(runs[(runs["role"] == "search") | (runs["seed"] == 0)], metrics)  # one pair settles nothing
    assert len(single) == 2 * len(CONTRASTS) and set(single["said"]) == {"not settled"}


def test_a_search_says_its_best_rate_and_whether_it_lies_on_an_edge():
    runs, metrics = primary_rows()
    table = searched(runs, metrics)
    of = runs[runs["role"].eq("search") & runs["dataset"].eq("eurosat") & runs["method"].eq("full")]
    value = metrics[metrics["metric"].eq("macro_f1") & metrics["split"].eq("val")].set_index("key")["value"]
    means = (100 * of["key"].map(value)).groupby(of["lr"]).mean()
    mine = table[table["cell"].eq("RGB × Full fine-tuning") & table["dataset"].eq("eurosat")].set_index("rate")
    assert mine["percent"].to_dict() == pytest.approx(means.to_dict()) and set(mine["n"]) == {3}
    assert list(mine.index[mine["best"]]) == [means.idxmax()]
    assert set(mine.index[mine["edge"]]) == {means.index.min(), means.index.max()}
    assert set(table.loc[table["cell"].eq("EMB × Frozen"), "part"]) == {"input"}


def made_ablations(gains):
    """Runs of DEFLECT on three data sets, and with a choice that gains so much on each of them."""
    base = Experiment(dataset="eurosat", method=pl.Deflect())
    runs, metrics = [], []
    for dataset, gain in zip(("eurosat", "spectral_scenes", "water"), gains, strict=True):
        for seed in range(5):
            for role, rank, more in (("final", 6, 0.0), ("ablation", 16, gain)):
                one = replace(base, dataset=dataset, method=pl.Deflect(rank=rank), seed=seed, init=seed, role=role)
                runs.append(row(one))
                metrics.append((runs[-1]["key"], "test", "made", 0.5 + more + 0.01 * (seed % 2) * (rank == 16)))
    return tables(r | {"primary_metric": "made"} for r in runs)[0], pd.DataFrame(metrics, columns=METRIC_COLUMNS)


@pytest.mark.parametrize(
    ("gains", "said"),
    [((0.1, 0.1, 0.0), ["ahead", "ahead", "not settled"]), ((0.1, 0.1, -0.1), ["ahead", "ahead", "behind"])],
)
def test_an_ablation_is_compared_on_each_data_set(gains, said, monkeypatch):
    monkeypatch.setattr(Experiment, "key", MADE_KEY)
    table = ablations(*made_ablations(gains))
    assert list(table["said"]) == said and set(table["n"]) == {5}


def test_the_bootstrap_draws_images():
    """Of one model that is right on 60 of 100 images and one that is on 50: the binomial of discordant pairs."""
    right, wrong = np.array([[1, 0], [0, 0]]), np.array([[0, 1], [0, 0]])
    one = {f"{i:03}": right if i < 60 else wrong for i in range(100)}
    other = {f"{i:03}": right if i >= 50 else wrong for i in range(100)}
    found = bootstrap(one, other, "accuracy", ("a", "b"))
    gaps = np.array([int(i < 60) - int(i >= 50) for i in range(100)])
    half = 1.96 * 100 * gaps.std() / 10
    assert found.mean == pytest.approx(10) and found.n == 100
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_predictions_of_folds_are_pooled(tmp_path):
    runs, metrics = primary_rows()
    table = contrasts(runs, metrics)
    assert pooled(table, runs, metrics, tmp_path).empty  # none were kept
    final = runs[runs["role"].eq("final") & runs["dataset"].eq("eurosat")]
    truth = np.arange(10)
    for key, fold in final[["key", "fold"]].to_numpy():
        logits = np.eye(10, dtype=np.float32)[truth]
        np.savez(tmp_path / f"{key}.npz", source=[f"{fold} {i}" for i in range(10)], logits=logits, truth=truth)
    found = pooled(table, runs, metrics, tmp_path)
    assert len(found) == len(CONTRASTS) and set(found["images"]) == {50} and (found["mean"] == 0).all()
    table = confusions(runs, metrics, tmp_path)
    assert len(table) == len(PRIMARY) * 100 and set(table["cell"]) == set(PRIMARY)
    right = table["true"] == table["predicted"]
    assert set(table.loc[right, "count"]) == {15} and not table.loc[~right, "count"].any()  # folds and repeats


def test_rows_of_a_data_set_come_from_the_first_study_that_scored_it(tmp_path):
    runs, metrics = primary_rows()
    first = runs["dataset"].eq("eurosat") | (runs["role"] != "final")
    for name, part in (("a", runs[first]), ("b", runs)):
        write_study(part, metrics, tmp_path / name)
    found, _ = first_with_finals([tmp_path / "a", tmp_path / "b"])
    assert len(found) == len(runs) and set(found["key"]) == set(runs["key"])


def test_the_grid_shows_every_cell_once(drawn):
    names, _ = drawn
    for ax in names["figures"]["grid"].axes[:2]:
        assert len(ax.texts) == len([name for name in PRIMARY if "(" not in name]) + 1  # and the panel's letter
        assert [text.get_text() for text in ax.get_yticklabels()] == ["RGB", "Inflated", "EMB"]


def test_differences_stand_on_a_measured_axis(drawn):
    names, _ = drawn
    ax = names["figures"]["differences"].axes[0]
    assert "DEFLECT" in [text.get_text() for text in ax.get_yticklabels()]
    dots = [offsets for dots in ax.collections if len(offsets := np.asarray(dots.get_offsets())) == 15]
    assert len(dots) == len(PRIMARY) - 1 and "n=15" in ax.get_xlabel()
    gaps = sorted(GAINS[name] - GAINS["RGB × LoRA"] for name in PRIMARY if name != "RGB × LoRA")
    assert sorted(each[:, 0].mean() for each in dots) == pytest.approx(gaps, abs=1)


def test_what_it_writes(drawn):
    names, folder = drawn
    made = {path.name for path in (folder / "quick").iterdir()}
    assert made == {f"05_{name}.{end}" for name in ("grid", "differences", "share") for end in ("png", "pdf")} | {
        f"05_{name}.{end}" for name in ("table", "published") for end in ("tex", "csv")
    }
    assert set(names["printed"].index) == set(PRIMARY)


def test_published_numbers_are_those_of_the_paper(drawn):
    table = drawn[0]["published"]
    assert table.loc["DEFLECT", "MADOS, mIoU"] == "50.5 ± 0.2" and table.loc["LoRA", "So2Sat, macro F1"] == "54.7 ± 0.2"
    assert table.shape == (7, 6) and table.loc["DEFLECT", "tuned, %"] == 0.2
