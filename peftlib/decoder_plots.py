"""Figures of decoders and metadata: what each gains, method by method."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from peftlib.decoder_study import decoder_scores, gains, intervals
from peftlib.figure_parts import INK, caption, colour, method_axis, panels, say
from peftlib.methods import METHODS
from peftlib.runs import DECODERS
from peftlib.tables import label


def decoders_figure(scores: pd.DataFrame) -> Figure:
    """Score of each method with each decoder, a panel a data set: a dot a seed, a bar their mean.

    Args:
        scores: of ``peftlib.decoder_study.scores``.
    """
    table = decoder_scores(scores)
    if table.empty:
        return say("no runs of segmentation")
    figure, frames = panels(sorted(table["dataset"].unique(), reverse=True), across=2, size=(5.2, 3.6))
    for name, ax in frames.items():
        part = table[table["dataset"] == name]
        methods = [method for method in METHODS if method in set(part["method"])]
        width = 0.8 / len(methods)
        for i, method in enumerate(methods):
            mine = part[part["method"] == method]
            places = [DECODERS.index(decoder) + (i - (len(methods) - 1) / 2) * width for decoder in mine["decoder"]]
            means = mine.groupby("decoder")["percent"].mean()
            bars = [DECODERS.index(decoder) + (i - (len(methods) - 1) / 2) * width for decoder in means.index]
            ax.bar(bars, means, 0.92 * width, color=colour(method), alpha=0.55, label=label(method))
            ax.plot(places, mine["percent"], "o", color=colour(method), markeredgecolor=INK, markersize=5)
        ax.set_xticks(range(len(DECODERS)), ["linear", "UNet", "UPerNet"])
        ax.set_title(name, loc="left")
        ax.set_ylabel("mIoU, %")
    next(iter(frames.values())).legend(fontsize=9, ncols=2, loc="upper left", bbox_to_anchor=(0, 1))
    caption(figure, f"Dots: {_seeds(table)}; bars: their mean")
    return figure


def gains_figure(scores: pd.DataFrame, of: str, over: str, text: str) -> Figure:
    """What a decoder, or metadata, gains for each method on each data set.

    Args:
        scores: of ``peftlib.decoder_study.scores``.
        of, over: as ``peftlib.decoder_study.gains`` takes them.
        text: of the axis.
    """
    table = gains(scores, of, over)
    if table.empty:
        return say(f"no runs that differ in {of or over} alone")
    names = sorted(table["dataset"].unique(), reverse=True)
    figure, frames = panels(names, across=len(names), size=(3.6, 2.9), sharey=True)
    order = [method for method in METHODS if method in set(table["method"])]
    for name, ax in frames.items():
        ax.axvline(0, color=INK, linewidth=1, linestyle=":")
        for row in intervals(table[table["dataset"] == name]).itertuples():
            place = order.index(row.method)
            mine = table[(table["dataset"] == name) & (table["method"] == row.method)]
            if np.isfinite(row.low):
                ax.plot([row.low, row.high], [place] * 2, color=colour(row.method), linewidth=2)
            ax.plot(row.mean, place, "D", color=colour(row.method), markeredgecolor=INK, markersize=7)
            ax.plot(mine["gain"], np.full(len(mine), place + 0.22), "o", color=colour(row.method), markersize=4)
        ax.set_title(name, loc="left")
        ax.set_xlabel(text)
        method_axis(ax, order)
    caption(figure, f"Small dots: {_seeds(table)}; diamond: their mean; line: Student's 95% interval")
    return figure


def _seeds(table: pd.DataFrame) -> str:
    count = table["seed"].nunique()
    return f"{count} seeds" if count > 1 else "one seed"
