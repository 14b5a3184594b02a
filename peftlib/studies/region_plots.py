"""Figures of unseen regions: what is lost there, and how far each method moved the model on RGB."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peftlib.studies.figure_parts import INK, against_share, bar, caption, colour, method_axis, name_points
from peftlib.studies.regions import mean_of
from peftlib.studies.tables import METRICS, label, number

BARS = "± one standard deviation"


def drop_figure(table: pd.DataFrame) -> Figure:
    """Each method's score in the regions that it was trained in and in others, and the difference, run by run.

    Args:
        table: of ``regions_study.region_scores``.
    """
    here, there, lost = (mean_of(table, column) for column in ("seen", "unseen", "drop"))
    order = list(here.sort_values("mean", ascending=False)["method"])
    figure, (score, drop) = plt.subplots(1, 2, figsize=(10, 0.38 * len(order) + 1.6), sharey=True)
    _filled_and_hollow(score, here, there, order)
    for loss in lost.itertuples():
        place = order.index(loss.method)
        drop.errorbar(loss.mean, place, xerr=bar(loss.std), fmt="o", **_style(loss.method))
        runs = table.loc[table["method"] == loss.method, "drop"]
        drop.plot(runs, np.full(len(runs), place), "|", color="black", markersize=10, zorder=4)
    method_axis(score, order)
    drop.axvline(0, color=INK, linewidth=0.8, zorder=0)
    score.set_xlabel(_measure(table))
    score.set_title("filled: same regions; hollow: unseen ones", fontsize=11, loc="left")
    drop.set_xlabel("drop in unseen regions, points")
    drop.set_title("right of the line: worse where unseen", fontsize=11, loc="left")
    caption(figure, f"{_seeds(here)}; ticks: single runs")
    return figure


def moved_figure(table: pd.DataFrame) -> Figure:
    """Distance from the pretrained model on RGB against the tuned share, and the drop against that distance.

    Args:
        table: of ``regions_study.region_scores``, with ``cka_rgb``.
    """
    table = table.assign(distance=1 - table["cka_rgb"])
    distance, lost = mean_of(table, "distance"), mean_of(table, "drop")
    figure, (share, drop) = plt.subplots(1, 2, figsize=(13, 5))
    against_share(share, distance)
    share.set_ylabel("distance on RGB, 1 - CKA")
    for x, y in zip(distance.itertuples(), lost.itertuples(), strict=True):
        style = {"color": colour(x.method), "markeredgecolor": INK, "markersize": 9, "elinewidth": 2}
        drop.errorbar(x.mean, y.mean, bar(y.std), fmt="o", label=label(x.method), **style)
    drop.axhline(0, color=INK, linewidth=0.8, zorder=0)
    drop.margins(x=0.18, y=0.15)
    drop.set_xlabel("distance on RGB, 1 - CKA")
    drop.set_ylabel("drop in unseen regions, points")
    caption(figure, f"{_seeds(distance)}; bands beyond RGB held at their mean. Left: near shares side by side")
    name_points(figure)
    return figure


def probe_figure(table: pd.DataFrame) -> Figure:
    """A probe fitted on the pretrained model's tokens of RGB, read on each adapted model's.

    Args:
        table: of ``regions_study.region_scores``, with the probe's scores.
    """
    after, blank, before = (mean_of(table, f"probe_{name}") for name in ("after", "rgb", "before"))
    order = list(blank.sort_values("mean", ascending=False)["method"])
    figure, ax = plt.subplots(figsize=(8, 0.38 * len(order) + 1.6))
    _filled_and_hollow(ax, after, blank, order)
    method_axis(ax, order)
    ax.axvline(before["mean"].mean(), color=INK, linewidth=1.2, linestyle="--", zorder=0)
    ax.text(
        before["mean"].mean(),
        1.0,
        "pretrained",
        transform=ax.get_xaxis_transform(),
        ha="center",
        va="bottom",
        fontsize=9,
    )
    ax.set_xlabel("balanced accuracy of the pretrained model's probe, %")
    caption(figure, f"Filled: all bands; hollow: bands beyond RGB at their mean. {_seeds(blank)}")
    return figure


def score_table(table: pd.DataFrame) -> pd.DataFrame:
    """What the figures show, as text: "40.1 ± 0.5", a row a method."""
    names = {"seen": "same regions", "unseen": "unseen", "drop": "drop", "cka_rgb": "CKA on RGB", "cka": "CKA"}
    names |= {"probe_rgb": "probe on RGB", "probe_after": "probe"}
    wide = {"tuned, %": mean_of(table, "seen").set_index("method")["tuned"].map("{:.2f}".format)}
    for column, name in names.items():
        if table[column].notna().any():
            digits, means = (2 if column.startswith("cka") else 1), mean_of(table, column).set_index("method")
            wide[name] = [number(row.mean, row.std, digits) for row in means.itertuples()]
    return pd.DataFrame(wide).rename(index=label).rename_axis(index=None)


def _filled_and_hollow(ax: Axes, filled: pd.DataFrame, hollow: pd.DataFrame, order: list[str]) -> None:
    """Two means of each method, one above the other. Both tables: of ``regions_study.mean_of``."""
    for table, up in ((filled, -0.14), (hollow, 0.14)):
        for row in table.itertuples():
            face = colour(row.method) if table is filled else "white"
            place = order.index(row.method) + up
            ax.errorbar(row.mean, place, xerr=bar(row.std), fmt="o", markerfacecolor=face, **_style(row.method))


def _style(method: str) -> dict:
    tint = colour(method)
    return {"color": tint, "markeredgecolor": tint, "markersize": 8, "markeredgewidth": 1.5, "elinewidth": 1.5}


def _seeds(means: pd.DataFrame) -> str:
    seeds = int(means["seeds"].max())
    return "one seed, so no error bars" if seeds == 1 else f"{seeds} seeds; error bars: {BARS} over them"


def _measure(table: pd.DataFrame) -> str:
    metrics = table["metric"].unique()
    return f"{METRICS.get(metrics[0], metrics[0])}, %" if len(metrics) == 1 else "mean score, %"
