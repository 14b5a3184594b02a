"""Scores -> the comparison table, as text and LaTeX."""

import json
import math
from functools import lru_cache
from pathlib import Path

import pandas as pd

from peftlib.experiments.results import read_study, write_study
from peftlib.experiments.statistics import Interval, verdict
from peftlib.files import atomic_path, figures_dir
from peftlib.methods import INPUTS, METHODS, input_from, method_from
from peftlib.studies.plots import cell_label, label, student_interval
from peftlib.studies.protocol import joined


def named(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores with a column ``cell``, input and method as people write them, and ``tuned``, in % of the encoder.

    Sorted by the registries: inputs, then methods. An option that is not the default is part of the name, but for
    ``start``, which is searched as a rate is.
    """
    texts = ["input", "input_options", "method", "options"]
    tuned = 100 * (scores["input_parameters"] + scores["method_parameters"]) / scores["encoder_parameters"]
    table = scores.assign(cell=[_cell(*facts) for facts in scores[texts].to_numpy()], tuned=tuned)
    places = {name: f"{place:03}" for place, name in enumerate([*INPUTS, *METHODS])}
    return table.sort_values(["input", "method", "cell"], key=lambda names: names.replace(places), kind="stable")


@lru_cache
def _cell(input: str, input_options: str, method: str, options: str) -> str:
    configs = input_from(input, json.loads(input_options)), method_from(method, json.loads(options))
    given = [(n, v) for c in configs for n, v in c.options().items() if v != type(c)().options().get(n)]
    other = [f"{n}={v!r}" for n, v in given if n != "start"]
    return cell_label(input, method) + (f" ({', '.join(other)})" if other else "")


def comparison(scores: pd.DataFrame) -> pd.DataFrame:
    """A row a cell, a column a data set: mean and 95% interval over runs, in percent.

    Args:
        scores: of ``peftlib.experiments.results.scores``, the runs to be compared, by one metric or several.

    Returns:
        index cell; columns "tuned, %", and for each data set and metric one that names it and its number of runs.
    """
    table = named(scores)
    columns = {"tuned, %": table.groupby("cell", sort=False)["tuned"].mean().map("{:.2f}".format)}
    for (dataset, metric), part in table.groupby(["dataset", "metric"], sort=False):
        runs = part.groupby("cell", sort=False)["percent"]
        n, head = runs.size(), f"{label(dataset)}, {label(metric)}"
        columns[f"{head} (n={span(n)})"] = runs.agg(lambda v: number(v.mean(), *student_interval(v)))
    backbones = ", ".join(table["backbone"].unique())
    whole = pd.DataFrame(columns).reindex(table["cell"].unique()).fillna("–")
    return whole.rename_axis(f"input × method, {backbones}")


def add_to_study(runs: pd.DataFrame, metrics: pd.DataFrame, folder: Path) -> Path:
    """``write_study``, beside rows of earlier calls: of a data set, cell and role those of this call count."""
    if (folder / "runs.csv").is_file():
        before, known = read_study(folder), ["dataset", "cell", "role"]
        new, old = named(runs)[known], named(before[0])
        old = old[~old[known].apply(tuple, axis=1).isin(set(new.itertuples(index=False, name=None)))]
        runs, metrics = joined((runs, metrics), (old[list(runs)], before[1][before[1]["key"].isin(old["key"])]))
    return write_study(runs, metrics, folder)


def save_table(table: pd.DataFrame, name: str, profile: str) -> list[Path]:
    """Write ``figures/<profile>/<name>.tex`` (for ``booktabs``) and ``.csv``, each whole or not at all."""
    latex = table.reset_index().style.hide(axis="index").format(escape="latex")
    texts = {"tex": latex.format_index(escape="latex", axis=1).to_latex(hrules=True), "csv": table.to_csv()}
    paths = [figures_dir(profile) / f"{name}.{suffix}" for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        with atomic_path(path) as temporary:
            temporary.write_text(text)
    return paths


def span(counts) -> str:
    """``15``, or ``12 to 15`` where counts differ."""
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def number(mean: float, low: float = math.nan, high: float = math.nan) -> str:
    """``61.2 (58.0 to 64.4)``; without an interval ``61.2``."""
    return f"{mean:.1f}" if math.isnan(low) else f"{mean:.1f} ({low:.1f} to {high:.1f})"


def signed(mean: float, low: float, high: float) -> str:
    """``+1.2 (-0.3 to +2.7)``: a difference and its interval."""
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def said(gap: Interval, margin: float = 0.0) -> str:
    """``+1.2 (-0.3 to +2.7), n=5: not settled``: a difference in points, and its ``verdict``."""
    return f"{signed(gap.mean, gap.low, gap.high)}, n={gap.n}: {verdict(gap, margin)}"
