"""Run by ``test_contributing`` in a copy of the package with a method, an input and a data set more: all find them."""

from pathlib import Path

import numpy as np
import seaborn as sns
from archives import write_tif
from helpers import SAVANNA, tiny_vit
from matplotlib import pyplot as plt
from toy_runs import do, toy

import peftlib as pl
from peftlib.data import load
from peftlib.experiments.results import read_study, scores, write_study
from peftlib.methods import METHODS
from peftlib.studies import plots, tables


def test_tables_grids_and_figures_of_one_file_more():
    assert Path(pl.__file__).is_relative_to(Path.cwd())  # the copy
    for split in ("train", "val", "test"):
        for i in range(6):
            values = np.random.default_rng(i).integers(500, 1500, (4, 16, 16)).astype(np.uint16)
            values[3] += 2000 * (i % 2)
            write_tif(Path("data/shores") / split / f"{('sand', 'rock')[i % 2]}_{i}.tif", values)
    sample = load("shores", split="val", bands=("B08", "B04", "B03", "B02"))[0]
    assert sample["image"].shape == (4, 16, 16) and sample["label"] == 1 and sample["image"][0].mean() > 0.2

    gated, shown = METHODS["gated_bias"](), pl.INPUTS["false_colour"]()
    costs = pl.cost_table(tiny_vit(), SAVANNA, methods=[gated])
    assert costs.loc["GatedBias()", "tuned"] == 3 * (4 + 32)

    pairs = [(gated, pl.RGB()), (pl.LoRA(), shown)]
    runs, metrics = do([toy(dataset="shores", method=m, input=i, lr=1e-2) for m, i in pairs], Path("rows"))
    assert runs["status"].eq("done").all(), runs["error"].tolist()
    write_study(runs, metrics, Path("study"))
    found = tables.named(scores(*read_study(Path("study"))))
    assert list(found["cell"]) == ["RGB × Gated bias", "False colour × LoRA"]
    assert len(tables.comparison(found)) == 2

    scope = {
        "runs": runs,
        "metrics": metrics,
        "tables": tables,
        "scores": scores,
        "table": found,
        "plt": plt,
        "sns": sns,
        "plots": plots,
        "METHODS": METHODS,
        "figures": {},
    }
    plt.switch_backend("agg")
    exec(Path("cell.py").read_text(), scope)  # the comparison figure, as notebook 05 has it
    scope["figure"].savefig("figure.png")
    ax = scope["figure"].axes[0]
    assert {text.get_text() for text in ax.get_xticklabels()} == {"Gated bias", "LoRA"}
    assert {text.get_text() for text in ax.get_yticklabels()} == {"RGB", "False colour"}
    assert len(set(plots.METHOD_COLOURS.values())) == len(METHODS)
