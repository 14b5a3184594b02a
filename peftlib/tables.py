"""Rows of runs -> scores, the paper's table, ranks, and what they advise. Nothing here is trained or drawn.

scores = tables.scores(results.read_table("real"))
tables.to_text(tables.score_table(scores))
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from peftlib.methods import METHODS, Method, method_from
from peftlib.methods.base import IGNORE
from peftlib.paths import root
from peftlib.results import REFERENCE
from peftlib.study import inputs, rgb_only

LABELS = {
    "frozen": "Frozen",
    "full": "Full fine-tuning",
    "patch_embed": "Patch embedding",
    "norm_tuning": "Norm tuning",
    "bitfit": "BitFit",
    "lora": "LoRA",
    "slr": "SLR",
    "houlsby": "Houlsby",
    "vpt": "VPT",
    "earth_adapter": "Earth-Adapter",
    "deflect": "DEFLECT",
}
METRICS = {"macro_f1": "macro F1", "miou": "mIoU", "map": "mAP", "mF1": "macro F1"}  # ours, and the paper's names
ALL_BANDS, RGB, START, VARIANT = "all bands", "RGB", "start", "variant"
PUBLISHED = "published"  # in the place of a backbone: the paper's Table 1, Scale-MAE ViT-L
DRAWS, LEVEL = 10_000, 95  # of the bootstrap: resamples, and how many percent of them an interval holds
NONE = "–"


def scores(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a finished final run: its headline metric on the test part.

    Args:
        rows: tidy rows of ``peftlib.results``, in any order, of any stage and status.

    Returns:
        columns dataset, task ("classification" or "segmentation"), backbone, method, kind, config, seed, init, folds,
        metric, percent (100 x its value), tuned_percent (of the encoder, the reading of bands included), key. ``kind``
        is "all bands" (a method as the study compares it), "RGB" (on red, green and blue alone), "start" (all bands,
        adapter and head started from another seed than the data) or "variant" (ablation, rank, layers).

    Raises:
        ValueError: two runs of one method where one belongs, as of two comparisons in one folder; names their keys.
    """
    final = rows["stage"].eq("final") & rows["status"].eq("done") & rows["split"].eq("test") & rows["headline"].eq(True)
    kept = rows[final & np.isfinite(rows["value"].astype(float))].drop_duplicates("key")
    configs = [method_from(name, json.loads(options)) for name, options in zip(kept.method, kept.options, strict=True)]
    table = pd.DataFrame(
        {
            "dataset": kept["dataset"],
            "task": kept["task"].where(kept["task"].eq("segmentation"), "classification"),
            "backbone": kept["backbone"],
            "method": kept["method"],
            "kind": [_kind(*place) for place in zip(configs, kept["seed"], kept["init"], strict=True)],
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
    _check_places(table)
    order = [table["method"].map(_place), table["task"], table["dataset"], table["backbone"], table["kind"]]
    order += [table["config"].map(str), table["seed"], table["init"]]
    return table.iloc[np.lexsort([column.to_numpy(str) for column in reversed(order)])].reset_index(drop=True)


def _kind(config: Method, seed: int, init: int) -> str:
    if config.name in METHODS:
        compared = config in inputs(config.name)
        rgb = config in [rgb_only(one) for one in inputs(config.name)]
    else:  # a tuner of HF peft has no default to be compared with
        compared, rgb = config.new_bands != IGNORE, config.new_bands == IGNORE
    if compared or rgb:
        return (ALL_BANDS if compared else RGB) if seed == init else (START if compared else VARIANT)
    return VARIANT


def _check_places(table: pd.DataFrame) -> None:
    config = table["config"].map(str).where(table["kind"].eq(VARIANT), "")
    places = table.assign(config=config)[["dataset", "backbone", "method", "kind", "config", "seed", "init"]]
    twice = table[places.duplicated(keep=False)]
    if len(twice):
        first = twice.iloc[0]
        same = twice[places.loc[twice.index].eq(places.loc[first.name]).all(axis=1)]
        raise ValueError(
            f"{len(same)} final runs of {first['method']} ({first['kind']}) on {first['dataset']}, seed "
            f"{first['seed']}: {', '.join(sorted(same['key']))}; give the rows of one comparison"
        )


def _place(method: str) -> str:
    """For sorting: methods in the order of the registry, others behind."""
    return f"{list(METHODS).index(method):02d}" if method in METHODS else f"99 {method}"


def compared(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores that methods are compared by: with all bands, as each was chosen."""
    return scores[scores["kind"] == ALL_BANDS]


def varied(scores: pd.DataFrame, method: str, *options: str) -> pd.DataFrame:
    """Runs of a method that differ from the compared ones in some options alone; these as columns beside."""
    mine = scores[(scores["method"] == method) & scores["kind"].isin([ALL_BANDS, VARIANT])]
    mine = mine[mine["seed"] == mine["init"]]
    plain = {name: getattr(METHODS[method](), name) for name in options}
    mine = mine[[replace(config, **plain) in inputs(method) for config in mine["config"]]]
    return mine.assign(**{name: [getattr(config, name) for config in mine["config"]] for name in options})


def columns(scores: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Columns of a table -> data sets they average: each one; each task that has several; the last column is all."""
    of_task = {task: tuple(sorted(part["dataset"].unique())) for task, part in scores.groupby("task")}
    names = tuple(name for found in of_task.values() for name in found)
    found = {name: (name,) for name in names}
    if len(of_task) > 1:
        found |= {f"average, {task}": members for task, members in of_task.items() if len(members) > 1}
    return found | ({"average": names} if len(names) > 1 else {})


def summary(scores: pd.DataFrame, by: Sequence[str] = ("method",)) -> pd.DataFrame:
    """Mean and spread of each group in each of ``columns``; a group that lacks a data set of a column has no row there.

    Args:
        by: what a group is; where "backbone" is not part of it, backbones are averaged over like data sets.

    Returns:
        columns of ``by``, column, mean (of data sets, equal weights, each a mean over seeds), std (over seeds, n - 1,
        of the mean over data sets; NaN for one seed), seeds, tuned (mean share of the encoder), all in percent.
    """
    cells, found = ["dataset"] if "backbone" in by else ["dataset", "backbone"], []
    for column, names in columns(scores).items():
        part = scores[scores["dataset"].isin(names)]
        needed = len(part[cells].drop_duplicates())
        for group, mine in part.groupby(list(by), sort=False):
            runs = mine.pivot_table("percent", "seed", cells)
            if runs.shape[1] == needed:
                each = runs.dropna().mean(axis=1)  # a number a seed
                facts = {"column": column, "mean": runs.mean().mean(), "std": each.std(), "seeds": len(each)}
                found.append(dict(zip(by, group, strict=True)) | facts | {"tuned": mine["tuned_percent"].mean()})
    return pd.DataFrame(found, columns=[*by, "column", "mean", "std", "seeds", "tuned"])


def published() -> pd.DataFrame:
    """Table 1 of the DEFLECT paper, as committed: columns backbone ("published"), method, dataset, metric, mean, std..."""
    table = pd.read_csv(root() / REFERENCE / "published_table1.csv").rename(columns={"encoder_tuned_percent": "tuned"})
    return table.assign(backbone=PUBLISHED, method=table["method"].replace("finetuning", "full"))


def score_table(scores: pd.DataFrame, published: pd.DataFrame | None = None) -> pd.DataFrame:
    """The paper's table in long form; ``to_text``, ``to_latex`` and ``to_csv`` write it.

    Args:
        published: of ``published``; its rows follow ours for the data sets that are the same, and are not ranked.

    Returns:
        columns of ``summary`` by backbone and method, and mark: "best", "second" or "" in a column of a backbone, by
        means rounded as they are shown, so that equal numbers have equal marks.
    """
    ours = summary(compared(scores), ("backbone", "method"))
    place = ours.groupby(["backbone", "column"])["mean"].transform(lambda m: m.round(1).rank(ascending=False, method="dense"))
    table = ours.assign(mark=place.map({1: "best", 2: "second"}).fillna(""))
    if published is None:
        return table
    theirs = []
    for column, names in columns(compared(scores)).items():
        part = published[published["dataset"].isin(names)]
        for method, mine in part.groupby("method", sort=False):
            if len(mine) == len(names):
                std = mine["std"].item() if len(names) == 1 else math.nan  # of averages none was published
                facts = {"column": column, "mean": mine["mean"].mean(), "std": std, "tuned": mine["tuned"].mean()}
                theirs.append({"backbone": PUBLISHED, "method": method, "seeds": 3, "mark": ""} | facts)
    return pd.concat([table, pd.DataFrame(theirs, columns=table.columns)], ignore_index=True) if theirs else table


def to_text(table: pd.DataFrame, cell: Callable[[pd.Series], str] | None = None) -> pd.DataFrame:
    """A score table as one reads it: a row a model and method, "61.2 ± 1.3", – where runs are missing, * at the best."""
    cells = table.apply(cell or _cell, axis=1) if len(table) else pd.Series(dtype=str)
    keys = [table["backbone"].rename("model"), table["method"].map(label)]
    shown = list(dict.fromkeys(zip(*keys, strict=True)))
    wide = cells.groupby([*keys, table["column"]]).first().unstack() if len(table) else pd.DataFrame()
    wide = wide.reindex(index=pd.MultiIndex.from_tuples(shown, names=["model", "method"])) if shown else wide
    wide = wide.reindex(columns=list(dict.fromkeys(table["column"]))).fillna(NONE)
    if shown:
        tuned = table.groupby(keys)["tuned"].mean().reindex(wide.index)
        wide.insert(0, "tuned, %", tuned.map("{:.2f}".format))
    return wide.rename_axis(columns=None)


def label(method: str) -> str:
    """A method's name as people write it."""
    return LABELS.get(method, method)


def number(mean: float, std: float = math.nan) -> str:
    """``61.2 ± 1.3``; of one seed ``61.2``."""
    return f"{mean:.1f}" if math.isnan(std) else f"{mean:.1f} ± {std:.1f}"
