"""What rows of the main study are said to say, by ``contrasts`` and by notebook 05."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_rows import GAINS, primary_rows
from matplotlib import pyplot as plt

from peftlib.experiments.results import write_study
from peftlib.studies.contrasts import CONTRASTS, advice, contrasts, first_with_finals
from peftlib.studies.main import PRIMARY

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
    for row in table.itertuples():
        gap = GAINS[row.one] - GAINS[row.other]
        assert row.said == ("not settled" if abs(gap) < 1 else "ahead" if gap > 0 else "behind"), (row.one, row.other)
        assert (row.low < gap < row.high and row.p >= 0.05) or row.said != "not settled"
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
