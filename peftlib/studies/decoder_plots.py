"""Figures of decoders and metadata: what each gains, method by method."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from peftlib.methods import METHODS
from peftlib.studies.decoders import decoder_scores, gains, intervals
from peftlib.studies.figure_parts import INK, caption, colour, method_axis, panels, say
from peftlib.studies.tables import label

NAMES = {"linear": "linear", "unet": "UNet", "upernet": "UPerNet"}


def decoders_figure(scores: pd.DataFrame) -> Figure:
    """Score of each method with each decoder, a panel a data set: a dot a seed, a bar their mean.

    Args:
        scores: of ``peftlib.studies.decoders.scores``.
    """
    table = decoder_scores(scores)
    if table.empty:
        return say("no runs of segmentation")
    figure, frames = panels(_settings(table), across=3, size=(3.8, 3.4))
    decoders = [name for name in NAMES if name in set(table["decoder"])]
    methods = [method for method in METHODS if method in set(table["method"])]
    width = 0.8 / len(methods)
    for name, ax in frames.items():
        part = table[_named(table) == name]
        for i, method in enumerate(methods):
            mine, shift = part[part["method"] == method], (i - (len(methods) - 1) / 2) * width
            places = [decoders.index(decoder) + shift for decoder in mine["decoder"]]
            means = mine.groupby("decoder")["percent"].mean()
            bars = [decoders.index(decoder) + shift for decoder in means.index]
            ax.bar(bars, means, 0.92 * width, color=colour(method), alpha=0.55, label=label(method))
            ax.plot(places, mine["percent"], "o", color=colour(method), markeredgecolor=INK, markersize=5)
        ax.set_xticks(range(len(decoders)), [NAMES[decoder] for decoder in decoders])
        ax.set_title(name, loc="left")
    first = next(iter(frames.values()))
    first.set_ylabel("mIoU, %")
    figure.legend(*first.get_legend_handles_labels(), loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    caption(figure, f"Dots: {_seeds(table)}; bars: their mean")
    return figure


def gains_figure(scores: pd.DataFrame, of: str, over: str, text: str) -> Figure:
    """What a decoder, or metadata, gains for each method on each data set.

    Args:
        scores: of ``peftlib.studies.decoders.scores``.
        of, over: as ``peftlib.studies.decoders.gains`` takes them.
        text: of the axis.
    """
    table = gains(scores, of, over)
    if table.empty:
        return say(f"no runs that differ in {of or over} alone")
    names = _settings(table)
    figure, frames = panels(names, across=len(names), size=(3.6, 2.9), sharey=True)
    order = [method for method in METHODS if method in set(table["method"])]
    for name, ax in frames.items():
        ax.axvline(0, color=INK, linewidth=1, linestyle=":")
        part = table[_named(table) == name]
        for row in intervals(part).itertuples():
            place, mine = order.index(row.method), part[part["method"] == row.method]
            if np.isfinite(row.low):
                ax.plot([row.low, row.high], [place] * 2, color=colour(row.method), linewidth=2)
            ax.plot(row.mean, place, "D", color=colour(row.method), markeredgecolor=INK, markersize=7)
            ax.plot(mine["gain"], np.full(len(mine), place + 0.22), "o", color=colour(row.method), markersize=4)
        ax.set_title(name, loc="left")
        ax.set_xlabel(text)
        method_axis(ax, order)
    caption(figure, f"Small dots: {_seeds(table)}; diamond: their mean; line: Student's 95% interval")
    return figure


def _named(table: pd.DataFrame) -> pd.Series:
    return table["dataset"] + ", " + table["epochs"].astype(str) + " epochs"


def _settings(table: pd.DataFrame) -> list[str]:
    """Simulated scenes first, short trainings first."""
    rows = table[["dataset", "epochs"]].drop_duplicates()
    rows = rows.assign(real=rows["dataset"] != "spectral_scenes").sort_values(["real", "dataset", "epochs"])
    return list(_named(rows))


def _seeds(table: pd.DataFrame) -> str:
    count = table["seed"].nunique()
    return f"{count} seeds" if count > 1 else "one seed"
