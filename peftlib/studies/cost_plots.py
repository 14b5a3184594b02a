"""Figures of what methods cost: time and memory as measured (``peftlib.studies.bench``), arithmetic as counted."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from peftlib.experiments.statistics import choice
from peftlib.methods import METHODS
from peftlib.studies.bench import PEER, PLAIN
from peftlib.studies.figure_parts import INK, bar, caption, colour, panels
from peftlib.studies.tables import label

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


COSTS = {
    "ratio": f"step time, share of that of {PEER}",
    "peak_mb": "highest memory, MiB",
    "step_gflops": "GFLOP a step",
}


def price_figure(rows: pd.DataFrame, scores: pd.DataFrame) -> Figure:
    """Step time, memory and arithmetic (columns) against the score averaged over data sets and the tuned share (rows).

    Args:
        rows: of ``bench``, of one setting.
        scores: of ``peftlib.experiments.statistics.scores``.
    """
    table = choice(scores).drop(columns="tuned").merge(rows, left_on="method", right_on="name")
    figure, axes = plt.subplots(2, len(COSTS), figsize=(11, 6.4), sharex="col", sharey="row")
    for (cost, text), score, share in zip(COSTS.items(), *axes, strict=True):
        for row in table.itertuples():
            x, style = getattr(row, cost), {"color": colour(row.method), "markeredgecolor": INK, "markersize": 8}
            score.errorbar(x, row.mean, bar(row.std), fmt="o", label=label(row.method), elinewidth=2, **style)
            share.plot(x, 100 * row.tuned / row.encoder, "o", **style)
        share.set_xlabel(text)
    axes[0, 0].set_ylabel("mean score, %")
    axes[1, 0].set_ylabel("tuned, % of the encoder (log)")
    axes[1, 0].set_yscale("symlog", linthresh=0.05)
    axes[1, 0].set_yticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    caption(figure, "Scores: committed rows, error bars ± one standard deviation over seeds; costs: as above")
    return figure


def growth_figure(counted: pd.DataFrame) -> Figure:
    """How the arithmetic of a step grows.

    Args:
        counted: of ``peftlib.model.costs.growth``.
    """
    figure, frames = panels(list(counted["knob"].unique()), across=2, size=(4.8, 3.2))
    for knob, ax in frames.items():
        for method, line in counted[counted["knob"] == knob].groupby("method", sort=False):
            ax.plot(line["value"], line["step_gflops"], marker="o", color=colour(method), label=label(method))
        ax.set_xlabel(knob)
        ax.set_ylabel("GFLOP a step and image")
        ax.set_ylim(0, 1.08 * counted.loc[counted["knob"] == knob, "step_gflops"].max())
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


def options(rows: pd.DataFrame) -> pd.DataFrame:
    """What autocast, ``torch.compile`` and activation checkpointing do to a step, where they were timed.

    Args:
        rows: of ``bench``, of several settings.

    Returns:
        a row a method; for each option step time and memory as shares of those without it, at the same size and batch.
    """
    plain = plain_rows(rows).set_index(["name", "image_size", "batch_size"])
    shares: dict[str, pd.Series] = {}
    kinds = {
        "bfloat16": rows["precision"] == "bfloat16",
        "compiled": rows["compiled"],
        "checkpointed": rows["checkpointed"],
    }
    for name, chosen in kinds.items():
        changed = rows[chosen].set_index(["name", "image_size", "batch_size"])
        share = (changed[["step_ms", "peak_mb"]] / plain[["step_ms", "peak_mb"]]).dropna().reset_index("name")
        shares |= {
            (name, text): share.set_index("name")[column]
            for column, text in (("step_ms", "time"), ("peak_mb", "memory"))
        }
    return pd.DataFrame(shares)


def plain_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows in float32 without options."""
    return rows[(rows["precision"] == "float32") & ~rows["compiled"] & ~rows["checkpointed"]]


def _label(name: str) -> str:
    return name if name in (PEER, PLAIN) else label(name)
