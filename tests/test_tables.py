"""Tables and pictures: names, order, intervals, and files that are the same each time."""

import numpy as np
import pandas as pd
import pytest
import torch
from made_rows import primary_rows
from matplotlib import pyplot as plt
from scipy import stats

import peftlib as pl
from peftlib.experiments.results import scores
from peftlib.experiments.statistics import Interval
from peftlib.studies import plots, tables
from peftlib.studies.main import PRIMARY


@pytest.fixture(scope="module")
def found() -> pd.DataFrame:
    runs, metrics = primary_rows()
    return scores(runs[runs["role"] == "final"], metrics)


@pytest.fixture
def ax():
    yield plt.figure().add_subplot()
    plt.close("all")


def test_cells_stand_in_the_order_of_the_registries(found):
    cells = tables.named(found.sample(frac=1, random_state=0))["cell"].unique()
    assert list(cells) == [
        "RGB × Full fine-tuning", "RGB × LoRA", "Inflated × Frozen", "Inflated × LoRA", "EMB × Frozen", "EMB × LoRA",
        "EMB × LoRA (rank=2)", "DEFLECT", "DEFLECT (constrain=False)", "DEFLECT (low_rank_principal=6)",
    ]  # fmt: skip
    assert set(cells) == set(PRIMARY)


def test_a_table_has_mean_interval_metric_and_number_of_runs(found):
    table = tables.comparison(found)
    assert list(table.columns) == ["tuned, %", "EuroSAT, macro F1 (n=15)", "simulated scenes, mIoU (n=10)"]
    named = tables.named(found)
    mine = named[named["cell"].eq("DEFLECT") & named["dataset"].eq("eurosat")]["percent"]
    low, high = stats.t.interval(0.95, 14, mine.mean(), stats.sem(mine))
    assert table.loc["DEFLECT", "EuroSAT, macro F1 (n=15)"] == f"{mine.mean():.1f} ({low:.1f} to {high:.1f})"
    assert table.loc["DEFLECT", "tuned, %"] == f"{100 * (30848 + 110592) / 21536640:.2f}"


def test_what_was_not_run_is_a_dash(found):
    table = tables.comparison(found[~(found["method"].eq("deflect") & found["dataset"].eq("eurosat"))])
    assert table.loc["DEFLECT"].tolist()[1] == "–" and table.loc["DEFLECT"].tolist()[2] != "–"


def test_latex_is_escaped_and_csv_reads_back(found, tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTLIB_FIGURES", str(tmp_path))
    table = tables.comparison(found)
    tex, csv = tables.save_table(table, "table", "quick")
    lines = tex.read_text().splitlines()
    assert lines[1] == r"\toprule" and r"tuned, \%" in lines[2] and lines[-1] == r"\end{tabular}"
    assert len([line for line in lines if line.endswith(r"\\")]) == len(table) + 1
    assert pd.read_csv(csv, dtype=str).set_index(table.index.name).equals(table)


def test_differences_and_numbers_are_written_with_their_interval():
    assert tables.span([15, 15]) == "15" and tables.span([15, 12]) == "12 to 15"
    assert tables.said(Interval(1.2, -0.34, 2.7, 5)) == "+1.2 (-0.3 to +2.7), n=5: not settled"
    assert tables.number(61.23) == "61.2" and tables.number(61.23, 60, 62.5) == "61.2 (60.0 to 62.5)"
    assert np.isnan(plots.student_interval([1.0])).all()


def test_every_method_has_a_colour_of_its_own_and_a_name():
    assert set(plots.METHOD_COLOURS) == set(pl.METHODS)
    assert len(set(plots.METHOD_COLOURS.values())) == len(pl.METHODS)
    assert all(plots.label(name)[0].isupper() for name in (*pl.METHODS, *pl.INPUTS))
    assert plots.label("eurosat") == "EuroSAT" and plots.label("unheard_of") == "unheard_of"
    assert plots.cell_label("emb", "lora") == "EMB × LoRA" and plots.cell_label("emb", "deflect") == "DEFLECT"


def test_runs_stand_at_their_values_beside_their_interval(ax):
    rows = pd.DataFrame({"value": [1.0, 2.0, 3.0, 5.0, 6.0, 7.0], "name": ["a"] * 3 + ["b"] * 3})
    plots.runs_and_intervals(ax, rows, "value", "name", {"b": "red", "a": "blue"})
    dots = [np.asarray(c.get_offsets()) for c in ax.collections if len(c.get_offsets()) == 3]
    assert [sorted(d[:, 0]) for d in dots] == [[5, 6, 7], [1, 2, 3]]
    spans = sorted(tuple(line.get_xdata()) for line in ax.lines if np.ptp(line.get_xdata()) > 1.5)
    half = stats.t.ppf(0.975, 2) / np.sqrt(3)
    assert np.allclose(spans, [(2 - half, 2 + half), (6 - half, 6 + half)])
    assert [text.get_text() for text in ax.get_yticklabels()] == ["b", "a"]


def test_a_composite_is_stretched_to_its_percentiles():
    picture = plots.composite(torch.rand(2, 8, 8), ("B02", "B03"), ("B03", "B02", "B03"))
    assert picture.shape == (8, 8, 3) and picture.min() == 0 and picture.max() == 1


def test_the_same_picture_gives_the_same_bytes(ax, tmp_path, monkeypatch):
    ax.plot([1, 2])
    made = []
    for name in ("one", "two"):
        monkeypatch.setenv("PEFTLIB_FIGURES", str(tmp_path / name))
        made.append({path.name: path.read_bytes() for path in plots.save_figure(ax.figure, "a", "quick")})
    assert made[0] == made[1] and set(made[0]) == {"a.png", "a.pdf"}
