"""Rows of runs -> numbers to compare methods by: scores, means and their spread, ranks. Nothing is trained here.

found = scores(results.read_table("real"))
summary(compared(found))
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from peftlib.methods import METHODS, Method, method_from
from peftlib.studies.comparison import inputs, rgb_only

ALL_BANDS, RGB, START, VARIANT = "all bands", "RGB", "start", "variant"
DRAWS, LEVEL = 10_000, 95  # of the bootstrap: resamples, and how many percent of them an interval holds


def scores(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a finished final run: its headline metric on the test part.

    Args:
        rows: tidy rows of ``peftlib.experiments.results``, in any order, of any stage and status.

    Returns:
        columns dataset, task ("classification" or "segmentation"), backbone, method, kind, config, seed, init, folds,
        metric, percent (100 x its value), tuned_percent (of the encoder, the reading of bands included), key. ``kind``
        is "all bands" (a method as the study compares it), "RGB" (the same on red, green and blue alone), "start" (all
        bands, adapter and head started from another seed than the data) or "variant" (ablation, ranks, layers).

    Raises:
        ValueError: two runs where one belongs, as of two comparisons in one folder; names their keys.
    """
    final = rows["stage"].eq("final") & rows["split"].eq("test") & rows["headline"].eq(True) & rows["status"].eq("done")
    kept = rows[final & np.isfinite(rows["value"].astype(float))].drop_duplicates("key")
    configs = [method_from(name, json.loads(options)) for name, options in zip(kept.method, kept.options, strict=True)]
    table = pd.DataFrame(
        {
            "dataset": kept["dataset"],
            "task": kept["task"].where(kept["task"].eq("segmentation"), "classification"),
            "backbone": kept["backbone"],
            "method": kept["method"],
            "kind": [_kind(*facts) for facts in zip(configs, kept["seed"], kept["init"], strict=True)],
            "config": pd.Series(configs, kept.index, dtype=object),
            "seed": kept["seed"].astype(int),
            "init": kept["init"].astype(int),
            "folds": [json.loads(recipe)["folds"] for recipe in kept["recipe"]],
            "metric": kept["metric"],
            "percent": 100 * kept["value"].astype(float),
            "tuned_percent": kept["tuned_percent"].astype(float),
            "key": kept["key"],
        }
    )
    table = table.assign(number=table["method"].map(_number), written=table["config"].map(str))
    order = ["number", "method", "task", "dataset", "backbone", "kind", "written", "seed", "init"]
    table = table.sort_values(order, ignore_index=True)
    _check_places(table)
    return table.drop(columns=["number", "written"])


def _kind(config: Method, seed: int, init: int) -> str:
    if config.name in METHODS:
        all_bands, rgb = config in inputs(config.name), config in [rgb_only(one) for one in inputs(config.name)]
    else:  # a tuner of HF peft: the study has no default of it
        all_bands, rgb = config.inflated, not config.inflated
    if seed != init:
        return START if all_bands else VARIANT
    return ALL_BANDS if all_bands else RGB if rgb else VARIANT


def _number(method: str) -> int:
    """For sorting: place in the registry, others behind."""
    return list(METHODS).index(method) if method in METHODS else len(METHODS)


def _check_places(table: pd.DataFrame) -> None:
    """Raise ValueError where a method has two runs of one kind, data set, backbone and seed."""
    place = ["dataset", "backbone", "method", "kind", "written", "seed", "init"]
    places = table[place].assign(written=table["written"].where(table["kind"].eq(VARIANT), ""))
    for facts, same in table[places.duplicated(keep=False)].groupby(place[:4] + place[5:], sort=False):
        dataset, _, method, kind, seed, _ = facts
        raise ValueError(
            f"{len(same)} final runs of {method}, {kind}, on {dataset} with seed {seed} ({', '.join(same['key'])}), "
            "where one belongs; give the rows of one comparison"
        )


def compared(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores that methods are compared by: with all bands, as each was chosen."""
    return scores[scores["kind"] == ALL_BANDS]


def varied(scores: pd.DataFrame, method: str, *options: str) -> pd.DataFrame:
    """Runs of a method that differ from the compared ones in some options alone, these as columns beside."""
    mine = scores[(scores["method"] == method) & (scores["seed"] == scores["init"]) & (scores["kind"] != RGB)]
    plain = {name: getattr(METHODS[method](), name) for name in options}
    mine = mine[np.array([replace(config, **plain) in inputs(method) for config in mine["config"]], dtype=bool)]
    return mine.assign(**{name: [getattr(config, name) for config in mine["config"]] for name in options})


def columns(scores: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Columns of a table -> data sets they average: each one; each task that has several; the last column is all."""
    of_task = {task: tuple(sorted(part["dataset"].unique())) for task, part in scores.groupby("task")}
    names = tuple(name for members in of_task.values() for name in members)
    found = {name: (name,) for name in names}
    if len(of_task) > 1:
        found |= {f"average, {task}": members for task, members in of_task.items() if len(members) > 1}
    return found | ({"average": names} if len(names) > 1 else {})


def summary(scores: pd.DataFrame, by: Sequence[str] = ("method",)) -> pd.DataFrame:
    """Mean and spread of each group in each of ``columns``; no row where a group lacks a data set of the column.

    Args:
        by: columns that make a group. Without "backbone", backbones are averaged over as data sets are.

    Returns:
        columns of ``by``, column, mean (over data sets, equal weights, of means over seeds), std (over seeds, n - 1, of
        means over data sets; NaN for one seed), seeds, tuned (mean share of the encoder); in percent.
    """
    by, cells, found = list(by), ["dataset"] if "backbone" in by else ["dataset", "backbone"], []
    wide = scores.pivot_table("percent", [*by, "seed"], cells, sort=False)  # a line a group and seed, a column a cell
    part_of = wide.columns.get_level_values("dataset") if len(scores) else pd.Index([])
    groups = dict(list(wide.groupby(level=by, sort=False)))
    tuned = scores.groupby([*by, "dataset"])["tuned_percent"].mean()
    for column, names in columns(scores).items():
        for group, runs in groups.items():
            cell = runs.to_numpy()[:, part_of.isin(names)]  # (seeds, cells)
            if np.isfinite(cell).any(axis=0).all():
                each = cell[np.isfinite(cell).all(axis=1)].mean(axis=1)  # a number a seed that has all cells
                facts = {"column": column, "mean": np.nanmean(cell, axis=0).mean(), "seeds": len(each)}
                facts["std"] = each.std(ddof=1) if len(each) > 1 else math.nan
                facts["tuned"] = np.mean([tuned[(*group, name)] for name in names])
                found.append(dict(zip(by, group, strict=True)) | facts)
    return pd.DataFrame(found, columns=[*by, "column", "mean", "std", "seeds", "tuned"])


def blocks(scores: pd.DataFrame) -> pd.DataFrame:
    """(blocks, methods) scores: a row a data set, backbone and seed for which every method has a run."""
    main = compared(scores)
    wide = main.pivot_table("percent", ["dataset", "backbone", "seed"], "method")
    return wide.reindex(columns=main["method"].unique()).dropna()


def mean_ranks(scores: pd.DataFrame) -> pd.DataFrame:
    """Each method's mean rank (1 is best, equals share) over ``blocks``, with its interval, the best first.

    The interval is a percentile bootstrap: blocks are drawn with replacement, all methods of a block together. It tells
    how much the ranking hangs on which of these data sets and seeds were run, not what it would be on others.

    Returns:
        index method; columns mean, low, high (NaN for fewer than two blocks), blocks.
    """
    return _interval(blocks(scores).rank(axis=1, ascending=False)).sort_values("mean", kind="stable")


def differences(scores: pd.DataFrame, to: str) -> pd.DataFrame:
    """Each other method's score minus that of one, paired by block, in points; else as ``mean_ranks``."""
    values = blocks(scores)
    values = values.sub(values[to], axis=0).drop(columns=to) if to in values else values.iloc[:0]
    return _interval(values).sort_values("mean", ascending=False, kind="stable")


def _interval(values: pd.DataFrame) -> pd.DataFrame:
    """(blocks, methods) -> mean over blocks and its bootstrap interval, from a fixed stream of random numbers."""
    n = len(values)
    table = pd.DataFrame({"mean": values.mean(), "low": math.nan, "high": math.nan, "blocks": n}).rename_axis("method")
    if n > 1:
        drawn = np.random.default_rng(0).integers(n, size=(DRAWS, n))
        tail = (100 - LEVEL) / 2
        table["low"], table["high"] = np.percentile(values.to_numpy()[drawn].mean(axis=1), [tail, 100 - tail], axis=0)
    return table if n else table.iloc[:0]


def student_half(std, runs):
    """Half of Student's 95% interval of a mean, from the deviation over so many runs; NaN for one run alone."""
    from scipy.stats import t

    return t.ppf((1 + LEVEL / 100) / 2, runs - 1) * std / np.sqrt(runs)


def paired_gain(one: pd.Series, other: pd.Series) -> tuple[float, float, float]:
    """Mean of one - other, seed by seed (the index), and both ends of Student's interval; NaN for one seed alone."""
    steps = (one - other).dropna()
    half = student_half(steps.std(), len(steps))
    return steps.mean(), steps.mean() - half, steps.mean() + half


def choice(scores: pd.DataFrame) -> pd.DataFrame:
    """The widest average of each method that has it, the highest first: ``summary`` with the columns near and pick.

    ``near``: not more than the best one's standard deviation below it. ``pick``: the one of those that tunes least.
    """
    main = compared(scores)
    table = summary(main)
    table = table[table["column"] == next(reversed(columns(main)), "")]
    table = table.sort_values(["mean", "tuned"], ascending=[False, True], ignore_index=True)
    near = table["mean"] >= table["mean"].max() - table["std"].iloc[:1].fillna(0).sum()
    return table.assign(near=near, pick=table.index.isin(table[near].sort_values("tuned", kind="stable").index[:1]))
