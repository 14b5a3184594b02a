"""Figures of what methods cost: time and memory as measured (``peftlib.bench``), arithmetic as counted."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from peftlib.bench import PEER, PLAIN
from peftlib.figure_parts import INK, caption, colour, name_points, panels
from peftlib.methods import METHODS
from peftlib.scoring import choice
from peftlib.tables import label

TASKS = 100


def race_figure(rows: pd.DataFrame) -> Figure:
    """Step time beside the peer's, and peak memory, a panel row a setting (image size, batch).

    Args:
        rows: of ``bench``, of one setting or several.
    """
    settings = list(rows.groupby(["image_size", "batch_size"], sort=False))
    figure, axes = plt.subplots(len(settings), 2, figsize=(9.5, 4.2 * len(settings)), squeeze=False)
    for (time, memory), ((size, batch), table) in zip(axes, settings, strict=True):
        table = table.sort_values("step_ms", ignore_index=True)
        places, colours = np.arange(len(table)), [colour(name) for name in table["name"]]
        whiskers = [table["ratio"] - table["ratio_low"], table["ratio_high"] - table["ratio"]]
        time.barh(places, table["ratio"], color=colours, xerr=whiskers, error_kw={"ecolor": INK})
        time.axvline(1, color=INK, linewidth=1, linestyle=":")
        time.set_title(f"{size} px, batch {batch}", loc="left")
        time.set_xlabel(f"step time, share of that of {PEER}")
        time.set_yticks(places, [_label(name) for name in table["name"]])
        memory.barh(places, table["peak_mb"], color=colours)
        memory.set_yticks(places, [""] * len(places))
        memory.set_xlabel("highest memory of a step, MiB")
    rounds, device = rows["repeats"].iloc[0], rows["device"].iloc[0]
    caption(figure, f"Medians of {rounds} interleaved rounds, whiskers: quartiles; {device}")
    return figure


def price_figure(rows: pd.DataFrame, scores: pd.DataFrame) -> Figure:
    """The score averaged over data sets against the time of a training step.

    Args:
        rows: of ``bench``, of one setting.
        scores: of ``peftlib.scoring.scores``.
    """
    table = choice(scores).merge(rows, left_on="method", right_on="name")
    figure, ax = plt.subplots(figsize=(9, 4.8))
    for row in table.itertuples():
        style = {"color": colour(row.method), "markeredgecolor": INK, "markersize": 9, "elinewidth": 2}
        ax.errorbar(
            row.ratio, row.mean, None if np.isnan(row.std) else row.std, fmt="o", label=label(row.method), **style
        )
    ax.set_xlabel(f"step time, share of that of {PEER}")
    ax.set_ylabel("mean score, %")
    ax.margins(x=0.15)
    caption(figure, "Scores: committed rows, error bars ± one standard deviation over seeds; time: as above")
    name_points(figure)
    return figure


def growth_figure(counted: pd.DataFrame) -> Figure:
    """How the arithmetic of a step grows.

    Args:
        counted: of ``peftlib.costs.growth``.
    """
    figure, frames = panels(list(counted["knob"].unique()), across=2, size=(4.8, 3.2))
    for knob, ax in frames.items():
        for method, line in counted[counted["knob"] == knob].groupby("method", sort=False):
            ax.plot(line["value"], line["step_gflops"], marker="o", color=colour(method), label=label(method))
        ax.set_xlabel(knob)
        ax.set_ylabel("GFLOP a step and image")
        ax.set_ylim(bottom=0)
    next(iter(frames.values())).legend(fontsize=9)
    return figure


def fleet(rows: pd.DataFrame, images: int = 1000, epochs: int = 20) -> pd.DataFrame:
    """What ``TASKS`` tasks cost on one backbone: disk for all adapters beside it, and hours to train them.

    Args:
        rows: of ``bench``, of one setting.
        images, epochs: of each task.

    Returns:
        a row a method: ``disk_gb`` (float32; the backbone once, but for full fine-tuning, which keeps one a task) and
        ``hours``.
    """
    table = rows[rows["name"].isin(list(METHODS))].set_index("name")
    encoder = table["encoder"] * 4 / 1e9
    disk = encoder + TASKS * table["tuned"] * 4 / 1e9
    disk["full"] = TASKS * table.loc["full", "tuned"] * 4 / 1e9 if "full" in disk.index else None
    hours = TASKS * images * epochs / table["images_per_s"] / 3600
    return pd.DataFrame({"disk_gb": disk.dropna(), "hours": hours}).sort_values("disk_gb")


def fleet_figure(table: pd.DataFrame) -> Figure:
    """Disk and hours of ``fleet``."""
    figure, (disk, time) = plt.subplots(1, 2, figsize=(9.5, 4.2))
    places, colours = np.arange(len(table)), [colour(name) for name in table.index]
    disk.barh(places, table["disk_gb"], color=colours)
    disk.set_yticks(places, [_label(name) for name in table.index])
    disk.set_xscale("log")
    disk.set_xlabel(f"disk for {TASKS} tasks, GB (log)")
    time.barh(places, table["hours"], color=colours)
    time.set_yticks(places, [""] * len(places))
    time.set_xlabel(f"hours to train {TASKS} tasks here")
    return figure


def _label(name: str) -> str:
    return name if name in (PEER, PLAIN) else label(name)
