"""The comparison: what is tried, by what it is chosen, what is scored on the test part, and what 05 says of it."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from made_rows import GAINS, MADE_KEY, made_up, preliminary
from matplotlib import pyplot as plt

import peftlib as pl
from peftlib.experiments.config import SEARCH, Experiment
from peftlib.experiments.grid import execute
from peftlib.experiments.results import scores, write_study
from peftlib.studies.comparison import CELLS, SETTINGS, search, study, tries

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "05_figures.ipynb"
TINY = Experiment(
    dataset="spectral_scenes", method=pl.Frozen(), data={"length": 4, "size": 32}, val_images=2, backbone="test_vit",
    weights="random", image_size=32, batch_size=2, steps=2,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _without_data(monkeypatch):
    monkeypatch.setattr(Experiment, "key", MADE_KEY)


def test_every_cell_tries_two_rates_at_each_part_it_tunes():
    for name, (input, method) in CELLS.items():
        low, high = tries(SETTINGS["eurosat"][0], input, method)
        assert (low.input, low.method, low.role) == (input, method, SEARCH)
        for field, rates in (("input_lr", input.learning_rates), ("lr", method.learning_rates)):
            assert not rates or getattr(high, field) == 4 * getattr(low, field), name
            assert not rates or getattr(low, field) in rates


def test_finals_share_no_fold_seed_or_scene_with_searches():
    runs, _ = preliminary()
    final, searched = (runs[runs["role"] == role] for role in ("final", SEARCH))
    assert len(searched) == 2 * 2 * len(CELLS) and len(final) == 2 * 3 * len(CELLS)
    assert not set(final["seed"]) & set(searched["seed"])
    chips = final[final["dataset"] == "eurosat"]
    assert (chips.groupby("method")["fold"].unique().map(sorted).map(tuple) == (0, 1, 2)).all()
    assert not set(chips["repeat"]) & set(searched["repeat"]) and (final["init"] == final["seed"]).all()
    scenes = {role: {json.loads(c)["data"].get("seed") for c in part["config"]} for role, part in runs.groupby("role")}
    assert scenes["final"] == {0, 1, 2, None} and scenes[SEARCH] == {100, None}


def test_validation_chooses_and_loss_chooses_low():
    def execute(experiments):
        runs, metrics = made_up(experiments)
        rates = metrics["key"].map({one.key: one.lr for one in experiments})
        return runs, metrics.assign(value=np.where(metrics["metric"] == "loss", 1 - rates, rates))

    planned = {"LoRA": tries(SETTINGS["eurosat"][0], *CELLS["RGB × LoRA"])}
    *_, best = search(execute, planned)
    assert best["LoRA"].lr == planned["LoRA"][1].lr and best["LoRA"].role == "final"
    *_, best = search(lambda every: execute(every), planned, "loss")
    assert best["LoRA"].lr == planned["LoRA"][1].lr  # 1 - rate is lowest at the highest rate


def test_a_cell_whose_searches_failed_is_named():
    def failing(experiments):
        runs, metrics = made_up(experiments)
        lost = runs["method"] == "full"
        return runs.assign(status=np.where(lost, "failed", "done")), metrics[
            ~metrics["key"].isin(runs.loc[lost, "key"])
        ]

    with pytest.raises(ValueError, match="RGB × Full"):
        study(failing)


def test_only_finals_score_the_test_part(tmp_path, monkeypatch):
    monkeypatch.undo()
    cells = {name: CELLS[name] for name in ("RGB × LoRA", "EMB × Frozen")}
    settings = {"scenes": (TINY, ({"seed": 0}, {"seed": 1}))}
    runs, metrics = study(partial(execute, folder=tmp_path, progress=False), settings, cells)
    assert set(runs["status"]) == {"done"} and len(runs) == 8
    splits = metrics.merge(runs, on="key").groupby("role")["split"].unique().map(set).to_dict()
    assert splits == {SEARCH: {"val"}, "final": {"val", "test"}}
    assert len(scores(runs, metrics)) == 4
    again = study(partial(execute, folder=tmp_path, progress=False), settings, cells)
    assert again[0].equals(runs) and replace(TINY, role="final").key not in set(runs["key"])


# --- notebook 05 on made-up rows ---


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The notebook's names after it has run on rows whose differences are known."""
    folder, names = tmp_path_factory.mktemp("made"), {}
    write_study(*preliminary(), folder / "rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTLIB_FIGURES", str(folder))
        patch.setattr(plt, "show", lambda: None)
        for cell in json.loads(NOTEBOOK.read_text())["cells"]:
            if cell["cell_type"] == "code":
                source = "".join(cell["source"])
                if "parameters" in cell["metadata"].get("tags", ()):
                    source += f"\nrows = {str(folder / 'rows')!r}"
                exec(source, names)
    yield names, folder
    plt.close("all")


def test_contrasts_are_said_as_the_rows_have_them(drawn):
    names, _ = drawn
    assert len(names["settled"]) == 8
    for (_, one, other), said in names["settled"].items():
        gap = gain(one) - gain(other)
        assert said == ("not settled" if abs(gap) < 2 else "ahead" if gap > 0 else "behind"), (one, other)
    assert all(limit > 0 for limit in names["power"].values())


def gain(cell: str) -> float:
    return GAINS[cell.replace("Full fine-tuning", "Full")]


def test_the_grid_shows_every_cell_once(drawn):
    names, _ = drawn
    for ax in names["figures"]["grid"].axes[:2]:
        assert len(ax.texts) == len(CELLS) + 1  # and the panel's letter
        assert [text.get_text() for text in ax.get_yticklabels()] == ["RGB", "Inflated", "EMB"]


def test_differences_stand_on_a_measured_axis(drawn):
    names, _ = drawn
    ax = names["figures"]["differences"].axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()][-1] == "DEFLECT"
    dots = [offsets for dots in ax.collections if len(offsets := np.asarray(dots.get_offsets())) == 3]
    assert len(dots) == len(CELLS) - 1
    assert dots[-1][:, 0] == pytest.approx(gain("DEFLECT"), abs=1.5) and "n=3" in ax.get_xlabel()


def test_what_it_writes(drawn):
    names, folder = drawn
    made = {path.name for path in (folder / "quick").iterdir()}
    assert made == {f"05_{name}.{end}" for name in ("grid", "differences", "share") for end in ("png", "pdf")} | {
        f"05_{name}.{end}" for name in ("table", "published") for end in ("tex", "csv")
    }
    assert list(names["table"].index) == [
        "RGB × Full fine-tuning", "RGB × LoRA", "Inflated × LoRA", "EMB × Frozen", "EMB × LoRA", "DEFLECT",
    ]  # fmt: skip


def test_published_numbers_are_those_of_the_paper(drawn):
    table = drawn[0]["published"]
    assert table.loc["DEFLECT", "MADOS, mIoU"] == "50.5 ± 0.2" and table.loc["LoRA", "So2Sat, macro F1"] == "54.7 ± 0.2"
    assert table.shape == (7, 6) and table.loc["DEFLECT", "tuned, %"] == 0.2
