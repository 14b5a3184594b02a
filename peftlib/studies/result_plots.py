"""The paper's figures, each from scores (``peftlib.experiments.statistics.scores``). Where rows are missing, a figure says so."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peftlib.experiments.statistics import (
    ALL_BANDS,
    LEVEL,
    RGB,
    START,
    choice,
    columns,
    compared,
    differences,
    mean_ranks,
    summary,
    varied,
)
from peftlib.studies.comparison import ABLATION, LAYERS
from peftlib.studies.figure_parts import INK, against_share, bar, caption, colour, method_axis, name_points, panels, say
from peftlib.studies.tables import METRICS, label

MARKS = "svD^P*X<>"


def choice_figure(scores: pd.DataFrame) -> Figure:
    """The score averaged over data sets against the tuned share, and which methods are as good as the best."""
    table = choice(scores)
    if table.empty:
        return say("no method has a final run on every data set")
    best, pick, column = table.iloc[0], table[table["pick"]].iloc[0], table["column"].iloc[0]
    figure, ax = plt.subplots(figsize=(9, 4.8))
    title = f"Highest mean: {label(best['method'])} ({best['mean']:.1f}%)"
    if best["std"] > 0:
        ax.axhspan(best["mean"] - best["std"], best["mean"], color="0.92", zorder=0)
        near = "within one standard deviation of it (grey)"
        if pick["method"] == best["method"]:
            title += f"\nNothing that tunes less lies {near}"
        else:
            title += f"\nTunes least of those {near}: {label(pick['method'])} ({pick['mean']:.1f}%)"
    ax.set_title(title, fontsize=12, weight="bold", loc="left")
    ax.set_ylabel(f"{_title(scores, column)}: {_measure(scores, column)}")
    against_share(ax, table)
    caption(figure, f"{_seeds(table)}. Shares that nearly coincide are drawn side by side")
    name_points(figure, frozenset({label(best["method"]), label(pick["method"])}))
    return figure


def datasets_figure(scores: pd.DataFrame) -> Figure:
    """The score against the tuned share, a panel a data set."""
    main = compared(scores)
    if main.empty:
        return say("no method has a final run")
    table = summary(main)
    single = [column for column, members in columns(main).items() if len(members) == 1]
    figure, frames = panels(single, across=2, size=(6, 4.2) if len(single) > 1 else (9, 4.8))
    for column, ax in frames.items():
        ax.set_title(column)
        ax.set_ylabel(_measure(main, column))
        against_share(ax, table[table["column"] == column])
    caption(figure, f"{_seeds(table)}. Shares that nearly coincide are drawn side by side")
    name_points(figure)
    return figure


def models_figure(scores: pd.DataFrame) -> Figure:
    """Each method averaged over data sets and models, and each model by itself."""
    table, main = choice(scores), compared(scores)
    if table.empty:
        return say("no method has a final run on every data set with every model")
    column, order = table["column"].iloc[0], list(table["method"])
    each = summary(main, ("backbone", "method"))
    each = each[(each["column"] == column) & each["method"].isin(order)]
    models = sorted(each["backbone"].unique())
    figure, ax = plt.subplots(figsize=(9, 4.4))
    _dots(ax, table, order)
    for model, mark in zip(models, MARKS, strict=False) if len(models) > 1 else ():
        mine = each[each["backbone"] == model]
        places = [order.index(name) for name in mine["method"]]
        ax.plot(mine["mean"], places, mark, color="none", markeredgecolor=INK, markersize=6, label=model, zorder=4)
    if len(models) > 1:
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    ax.set_xlabel(_measure(main, column))
    shown = f"mean over {len(models)} models" if len(models) > 1 else f"one model: {models[0]}"
    ax.set_title(f"{_title(main, column)}, {shown}")
    caption(figure, _seeds(table))
    return figure


def bands_figure(scores: pd.DataFrame) -> Figure:
    """Each method with all bands and on red, green and blue alone."""
    both = scores[scores["kind"].isin([ALL_BANDS, RGB])]
    both = both[both["dataset"].isin(both.loc[both["kind"] == RGB, "dataset"])]
    if both.empty:
        return say("there are no runs on RGB alone")
    table = summary(both, ("method", "kind")).sort_values(["kind", "mean"], ascending=False)  # "RGB" < "all bands"
    figure, frames = panels(_average_first(both), across=4, size=(3, 4.4), sharey=True)
    first = table[table["column"] == next(iter(frames))]  # all bands before RGB, high before low
    order = list(dict.fromkeys([*first["method"], *table["method"]]))
    for column, ax in frames.items():
        means = table[table["column"] == column].pivot(index="method", columns="kind", values="mean")
        means = means.reindex(index=order, columns=[RGB, ALL_BANDS])
        ax.hlines(range(len(order)), means[RGB], means[ALL_BANDS], color="0.75", linewidth=3, zorder=1)
        for kind in (RGB, ALL_BANDS):
            _dots(ax, table[(table["column"] == column) & (table["kind"] == kind)], order, hollow=kind == RGB)
        ax.set_title(_title(both, column))
        ax.set_xlabel(_measure(both, column))
    caption(figure, f"filled: all bands; hollow: RGB alone (DEFLECT has no such form). {_seeds(table)}")
    return figure


def stability_figure(scores: pd.DataFrame) -> Figure:
    """How far runs of a method lie from their mean: over seeds, and over starts of adapter and head alone."""
    starts = scores[scores["kind"].isin([ALL_BANDS, START]) & (scores["seed"] == 0)]
    fold = ", fold" if compared(scores)["folds"].gt(0).any() else ""
    parts = {f"over seeds: order of images, start{fold}": compared(scores), "over starts of adapter and head": starts}
    parts = {title: _deviations(part) for title, part in parts.items()}
    parts = {title: part for title, part in parts.items() if len(part)}
    if not parts:
        return say("no method has two seeds or two starts")
    figure, axes = plt.subplots(1, len(parts), figsize=(6 * len(parts), 4.4), squeeze=False)
    for ax, (title, part) in zip(axes[0], parts.items(), strict=True):
        pooled = part.groupby("method")["variance"].mean().pow(0.5).sort_values(kind="stable")
        for i, (name, std) in enumerate(pooled.items()):
            ax.barh(i, 2 * std, left=-std, height=0.6, color=colour(name), alpha=0.5)
            mine = part[part["method"] == name]
            ax.plot(mine["deviation"], np.full(len(mine), i), "|", color="black", markersize=9)
            ax.text(1.01, i, f"{std:.1f}", transform=ax.get_yaxis_transform(), va="center", fontsize=9)
        method_axis(ax, list(pooled.index))
        ax.axvline(0, color=INK, linewidth=0.8, zorder=0)
        ax.set_xlabel("score minus the method's mean on its data set, points")
        ax.set_title(f"{title} ({', '.join(sorted(part['dataset'].unique()))})")
    missing = "" if len(parts) > 1 else ". No runs in which the start alone varies"
    caption(figure, f"ticks: runs; bar and number: standard deviation, pooled over data sets and models{missing}")
    return figure


def sensitivity_figure(scores: pd.DataFrame) -> Figure:
    """What the rank of DEFLECT and LoRA matters, and in which blocks DEFLECT sits."""
    ranks = pd.concat([varied(scores, "deflect", "rank"), varied(scores, "lora", "rank", "alpha")])
    layers = varied(scores, "deflect", "layers")
    names = {value: name for name, value in LAYERS.items()} | {(): "none"}
    layers = layers.assign(blocks=[names.get(value, str(value)) for value in layers["layers"]])
    where = _where_varied(layers[layers["blocks"] != "none"])["dataset"]  # none alone is a part of the ablation
    lines = {"rank": _where_varied(ranks), "blocks": layers[layers["dataset"].isin(where)]}
    lines = {option: part for option, part in lines.items() if len(part)}
    if not lines:
        return say("there are no runs with other ranks or layers")
    across = max((_average_first(part) for part in lines.values()), key=len)
    size = (max(3 * len(across), 6), 3 * len(lines))
    figure, axes = plt.subplots(len(lines), len(across), figsize=size, squeeze=False)
    for (option, part), row in zip(lines.items(), axes, strict=True):
        table = summary(part, ("method", option))
        for column, ax in zip(across, row, strict=True):
            if column not in columns(part):
                ax.remove()
                continue
            _sweep(ax, table[table["column"] == column], option)
            ax.set_title(_title(part, column))
            ax.set_ylabel(_measure(part, column))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2)
    seeds = _seeds(pd.concat([summary(part, ("method", option)) for option, part in lines.items()]))
    caption(figure, f"LoRA's alpha is its rank. Blocks: of DEFLECT; none is EMB alone. {seeds}")
    return figure


def ablation_figure(scores: pd.DataFrame) -> Figure:
    """DEFLECT's parts one by one, with the frozen model and LoRA as marks."""
    deflect = scores[(scores["method"] == "deflect") & (scores["seed"] == scores["init"])]
    written = {str(config): part for part, config in ABLATION.items()}
    steps = deflect.assign(step=deflect["config"].map(str).map(written)).dropna(subset="step")
    steps = _where_varied(steps)
    if steps.empty:
        return say("there are no runs of DEFLECT without its parts")
    others = summary(scores[scores["dataset"].isin(steps["dataset"])], ("method", "kind"))
    marks = [("Frozen, RGB", "frozen", RGB, ":"), ("Frozen, all bands", "frozen", ALL_BANDS, "--")]
    marks += [("LoRA, all bands", "lora", ALL_BANDS, "-")]
    table = summary(steps, ("step",))
    figure, frames = panels(_average_first(steps), across=4, size=(3, 3.6))
    for column, ax in frames.items():
        mine = table[table["column"] == column].set_index("step").reindex(list(ABLATION))
        style: dict[str, Any] = {"color": colour("deflect"), "marker": "o", "markersize": 8, "markeredgecolor": INK}
        ax.errorbar(range(3), mine["mean"], mine["std"].fillna(0), label="DEFLECT's parts", **style)
        for name, method, kind, dash in marks:
            line = (others["method"] == method) & (others["kind"] == kind) & (others["column"] == column)
            for mean in others.loc[line, "mean"]:
                ax.axhline(mean, color=colour(method), linestyle=dash, linewidth=2, label=name, zorder=1)
        ax.set_xticks(range(3), ["EMB", "+ uAtt", "+ deflec-\ntion"])
        ax.set_xlim(-0.4, 2.4)
        ax.set_title(_title(steps, column))
        ax.set_ylabel(_measure(steps, column))
    shown = [pair for ax in frames.values() for pair in zip(*ax.get_legend_handles_labels(), strict=True)]
    figure.legend(handles={name: handle for handle, name in shown}.values(), loc="outside upper right", ncols=4)
    caption(figure, _seeds(table))
    return figure


def ranks_figure(scores: pd.DataFrame) -> Figure:
    """Mean rank of each method, and its difference to LoRA and to DEFLECT, with intervals."""
    ranks = mean_ranks(scores)
    if ranks.empty:
        return say("there is no data set and seed with runs of every method")
    tables = {"mean rank, 1 is best": ranks}
    for to in ("lora", "deflect"):
        tables[f"score minus {label(to)}'s, points"] = differences(scores, to)
    tables = {title: table for title, table in tables.items() if len(table)}
    figure, axes = plt.subplots(1, len(tables), figsize=(4.2 * len(tables), 4.4), sharey=True, squeeze=False)
    for ax, (title, table) in zip(axes[0], tables.items(), strict=True):
        for name, row in table.iterrows():
            place = list(ranks.index).index(name)
            ax.hlines(place, row["low"], row["high"], color=colour(name), linewidth=3)
            ax.plot(row["mean"], place, "o", color=colour(name), markeredgecolor=INK, markersize=8)
        if table is not ranks:
            ax.axvline(0, color=INK, linewidth=0.8, zorder=0)
        ax.set_xlabel(title)
    method_axis(axes[0, 0], list(ranks.index))
    n = int(ranks["blocks"].iloc[0])
    told = f"; lines: {LEVEL}% bootstrap intervals, over blocks drawn again, all methods of one together"
    rough = "; so few blocks make them rough" if n < 10 else ""
    caption(figure, f"mean over {n} block{'s' * (n > 1)} (data set, model, seed){(told + rough) * (n > 1)}")
    return figure


# What the figures share.


def _seeds(table: pd.DataFrame) -> str:
    """How many seeds, and what error bars are, of a ``summary``."""
    least, most = int(table["seeds"].min()), int(table["seeds"].max())
    if most < 2:
        return "one seed, so no error bars"
    return f"{most if least == most else f'{least} to {most}'} seeds; error bars: ± one standard deviation over them"


def _measure(scores: pd.DataFrame, column: str) -> str:
    """The name of an axis: the metric of a column, in percent."""
    metrics = scores.loc[scores["dataset"].isin(columns(scores)[column]), "metric"].unique()
    return f"{METRICS.get(metrics[0], metrics[0])}, %" if len(metrics) == 1 else "mean score, %"


def _title(scores: pd.DataFrame, column: str) -> str:
    members = columns(scores)[column]
    return column if len(members) == 1 else f"{column} of {len(members)} data sets"


def _average_first(scores: pd.DataFrame) -> list[str]:
    """The widest average, then each data set."""
    found = columns(scores)
    single = [column for column, members in found.items() if len(members) == 1]
    return list(dict.fromkeys([next(reversed(found)), *single]))


def _dots(ax: Axes, table: pd.DataFrame, order: list[str], hollow: bool = False) -> None:
    """Mean and deviation of each method, on its line."""
    for row in table.itertuples():
        face = "white" if hollow else colour(row.method)
        style: dict[str, Any] = {
            "color": colour(row.method),
            "markerfacecolor": face,
            "markersize": 8,
            "markeredgewidth": 1.5,
        }
        ax.errorbar(row.mean, order.index(row.method), xerr=bar(row.std), fmt="o", elinewidth=1.5, **style)
    method_axis(ax, order)


def _deviations(part: pd.DataFrame) -> pd.DataFrame:
    """Of each run its distance to the mean of its method on its data set, and the variance there; two runs at least."""
    groups = part.groupby(["method", "dataset", "backbone"])["percent"]
    deviation, variance = part["percent"] - groups.transform("mean"), groups.transform("var")
    return part.assign(deviation=deviation, variance=variance)[groups.transform("size") > 1]


def _where_varied(part: pd.DataFrame) -> pd.DataFrame:
    """Data sets on which there is more than the compared runs."""
    return part[part["dataset"].isin(part.loc[part["kind"] != ALL_BANDS, "dataset"])]


def _sweep(ax: Axes, table: pd.DataFrame, option: str) -> None:
    """Means and deviations against the values of an option: numbers on a log axis, or names."""
    known = [*LAYERS, "none"]
    names = sorted(table[option].unique(), key=lambda v: known.index(v) if v in known else len(known))
    for method, mine in table.groupby("method", sort=False):
        mine = mine.sort_values(option) if option == "rank" else mine
        aside = 0.96 if method == "deflect" else 1.04  # so that bars do not cover each other
        x = mine["rank"] * aside if option == "rank" else [names.index(value) for value in mine[option]]
        line = "-" if option == "rank" else ""
        style: dict[str, Any] = {"color": colour(method), "marker": "o", "markeredgecolor": INK, "linestyle": line}
        ax.errorbar(x, mine["mean"], mine["std"].fillna(0), label=label(method), **style)
    if option == "rank":
        ax.set_xscale("log")
        ax.set_xticks(sorted(table["rank"].unique()), [str(rank) for rank in sorted(table["rank"].unique())])
        ax.set_xticks([], minor=True)
        ax.set_xlabel("rank")
    else:
        ax.set_xticks(range(len(names)), names, rotation=30)
        ax.set_xlim(-0.5, len(names) - 0.5)
        ax.set_xlabel("adapted blocks")
