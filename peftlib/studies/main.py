"""The main study: inputs x methods on real and simulated images, trained to a plateau.

runs, metrics = study(execute)     # rows of the study "main"

For each data set: the rate of each input with frozen blocks, then the rate of each cell's method at that of its input,
each tried further until the best lies inside; then the final runs, on other folds or scenes. Primary cells come first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import pandas as pd

import peftlib as pl
from peftlib.experiments.config import BF16_FROZEN, SEARCH, Experiment
from peftlib.experiments.results import experiment_fields, scores
from peftlib.methods import METHODS, Input, Method
from peftlib.methods.inputs import STARTS
from peftlib.studies.comparison import Execute, Fields, fitting, joined

Cell = tuple[Input, Method]
FACTOR, EXTENSIONS = 4, 3  # between rates; how often the best may lie on the edge
EXPLORATORY = "exploratory"  # role of the final runs of cells that are not primary
PRIMARY: dict[str, Cell] = {
    "EMB × LoRA": (pl.EMB(), pl.LoRA()),
    "DEFLECT": (pl.EMB(), pl.Deflect()),
    "RGB × LoRA": (pl.RGB(), pl.LoRA()),
    "Inflated × LoRA": (pl.Inflated(), pl.LoRA()),
    "EMB × Frozen": (pl.EMB(), pl.Frozen()),
    "DEFLECT (constrain=False)": (pl.EMB(), pl.Deflect(constrain=False)),
    "EMB × LoRA (rank=2)": (pl.EMB(), pl.LoRA(rank=2)),
    "DEFLECT (low_rank_principal=6)": (pl.EMB(), pl.Deflect(low_rank_principal=6)),
    "Inflated × Frozen": (pl.Inflated(), pl.Frozen()),
    "RGB × Full": (pl.RGB(), pl.Full()),
}
# Done again with other steps, the first three in float32 too.
CHECKED = ("RGB × LoRA", "EMB × LoRA", "DEFLECT", "Inflated × LoRA", "EMB × Frozen")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A data set's part of the study.

    Attributes:
        setting: the experiment, of which cell and rates are filled in.
        searches: fields of the runs that choose a rate together: their folds and seeds are no final's.
        finals: fields of the final runs of a primary cell; others have the first ``few``.
    """

    setting: Experiment
    searches: tuple[Fields, ...]
    finals: tuple[Fields, ...]
    few: int = 5


def _repeated(folds: int, repeats: int) -> tuple[Fields, ...]:
    return tuple({"fold": i % folds, "repeat": i // folds, "seed": i} for i in range(folds * repeats))


def _unseen(folds: int) -> tuple[Fields, ...]:
    return tuple({"fold": fold, "repeat": 100, "seed": 100 + fold} for fold in range(folds))


_BASE: Fields = {"method": pl.Frozen(), "batch_size": 16, "head_lr": 3e-3}
_SCENES: Fields = {"length": 2000, "size": 32}
PLANS = {
    "eurosat": Plan(
        setting=Experiment(dataset="eurosat", folds=5, val_share=0.2, image_size=56, steps=500, **_BASE),
        searches=_unseen(3),
        finals=_repeated(5, 3),
    ),
    "spectral_scenes": Plan(  # each seed has scenes of its own
        setting=Experiment(dataset="spectral_scenes", data=_SCENES, val_images=200, steps=1000, **_BASE),
        searches=({"seed": 100, "data": _SCENES | {"seed": 100}},),
        finals=tuple({"seed": seed, "data": _SCENES | {"seed": seed}} for seed in range(10)),
    ),
    "water": Plan(  # tiles whose patches cover 8 pixels, because labels are per pixel
        setting=Experiment(dataset="water", folds=5, val_share=0.2, tile=64, image_size=112, steps=500, **_BASE),
        searches=_unseen(1),
        finals=_repeated(5, 2),
    ),
    "calfire": Plan(
        setting=Experiment(dataset="calfire", folds=5, val_share=0.25, image_size=112, steps=500, **_BASE),
        searches=_unseen(1),
        finals=_repeated(5, 1),
    ),
    "marida": Plan(
        setting=Experiment(dataset="marida", folds=5, val_share=0.25, tile=64, image_size=112, steps=500, **_BASE),
        searches=_unseen(1),
        finals=_repeated(5, 1),
    ),
}


def exploratory() -> dict[str, Cell]:
    """Every input with every method, with default options, but for the primary cells."""
    inputs = (pl.RGB(), pl.Inflated(), pl.EMB())
    every = {f"{i.label} × {m.label}": (i, m()) for m in METHODS.values() for i in inputs if not m.needs_auxiliary}
    return {name: cell for name, cell in every.items() if cell not in PRIMARY.values()}


def study(
    execute: Execute, plans: Mapping[str, Plan] = PLANS, precision: str | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Search, then final runs: of primary cells on each data set, then of the others.

    Args:
        execute: runs experiments and gives their rows: ``peftlib.experiments.grid.execute``.
        precision: of the runs in which something is frozen; None is the fastest of this machine.
    """
    print(planned(plans).to_string(index=False), flush=True)
    tables, absent = [], {}
    for role, cells in (("final", PRIMARY), (EXPLORATORY, exploratory())):
        for name, plan in plans.items():
            try:
                tables += study_cells(execute, plan, cells, role, precision)
                if role == "final":
                    tables += checks(execute, plan, tables[-1][0])
            except FileNotFoundError as error:
                absent[name] = error
    for name, reason in absent.items():
        print(f"left out {name}: {reason}", flush=True)
    if not tables:
        raise FileNotFoundError(f"no data of {', '.join(absent)}; set PEFTLIB_DATA")
    return joined(*tables)


def planned(plans: Mapping[str, Plan]) -> pd.DataFrame:
    """How many runs of how many steps each data set takes, if no search is extended."""
    rows = []
    for name, plan in plans.items():
        for cells, finals in ((PRIMARY, len(plan.finals)), (exploratory(), plan.few)):
            tries = sum(len(method.learning_rates) for _, method in cells.values())
            facts = {"data set": name, "cells": len(cells), "searches": tries * len(plan.searches)}
            rows.append(facts | {"final runs": finals * len(cells), "steps each": plan.setting.steps})
    return pd.DataFrame(rows)


def checks(execute: Execute, plan: Plan, runs: pd.DataFrame) -> list:
    """Tables of runs that say whether float32, half the steps or twice the steps would change what is claimed.

    Args:
        runs: final ones; the first ``plan.few`` of some cells are done again.
    """
    finals = [Experiment.from_dict(experiment_fields(run)) for _, run in runs.iterrows()]
    seeds = {fields["seed"] for fields in plan.finals[: plan.few]}
    places = [(input.name, method) for input, method in (PRIMARY[name] for name in CHECKED)]
    again = [one for one in finals if one.seed in seeds and (one.input.name, one.method) in places]
    exact = [one for one in again if (one.input.name, one.method) in places[:3]]
    others = [replace(one, role="precision", precision="32-true") for one in exact if one.precision == BF16_FROZEN]
    for steps in (plan.setting.steps // 2, 2 * plan.setting.steps):
        others += [replace(one, role="plateau", steps=steps) for one in again]
    return [execute(others)]


def study_cells(execute: Execute, plan: Plan, cells: Mapping[str, Cell], role: str, precision: str | None) -> list:
    """Tables of the runs and metrics of some cells on a data set, as they are made; the last are those of ``role``."""
    tables: list[tuple[pd.DataFrame, pd.DataFrame]] = []

    def kept(experiments: Sequence[Experiment]) -> tuple[pd.DataFrame, pd.DataFrame]:
        tables.append(execute(experiments))
        return tables[-1]

    def experiments(cell: Cell, runs: Sequence[Fields], **fields) -> list[Experiment]:
        input, method = cell
        how: Fields = {"input": input, "method": method, "precision": fitting(method, precision), "init": None}
        return [replace(plan.setting, **how, **fields, **run) for run in runs]

    def search(cell: Cell, **fields) -> list[Experiment]:
        return experiments(cell, plan.searches, role=SEARCH, **fields)

    inputs = {input for input, _ in cells.values() if input.learning_rates}
    frozen = {i: lambda rate, i=i: search((i, pl.Frozen()), input_lr=rate) for i in inputs}
    input_lr = best_inside(kept, frozen, {i: i.learning_rates for i in inputs})
    inflated = pl.Inflated()
    if inflated in inputs:  # how its kernels start is chosen too
        starts = {start: search((pl.Inflated(start), pl.Frozen()), input_lr=input_lr[inflated]) for start in STARTS}
        best = max(starts, key=validated(*kept([*chain(*starts.values())]), starts).__getitem__)
        input_lr[pl.Inflated(best)] = input_lr[inflated]
        cells = {n: (pl.Inflated(best) if i == inflated else i, method) for n, (i, method) in cells.items()}
    known = {name: {"input_lr": input_lr[i]} if i in input_lr else {} for name, (i, _) in cells.items()}
    tuned = {name: cell for name, cell in cells.items() if cell[1].learning_rates}
    tries = {name: lambda rate, name=name: search(cells[name], lr=rate, **known[name]) for name in tuned}
    lr = best_inside(kept, tries, {name: method.learning_rates for name, (_, method) in tuned.items()})
    runs = plan.finals if role == "final" else plan.finals[: plan.few]
    finals = {
        n: experiments(cells[n], runs, role=role, **known[n], **({"lr": lr[n]} if n in lr else {})) for n in cells
    }
    kept([one for pair in zip(*finals.values(), strict=True) for one in pair])  # a fold of all cells, then the next
    return tables


def best_inside(
    execute: Execute, places: Mapping[Any, Callable[[float], list[Experiment]]], rates: Mapping[Any, Sequence[float]]
) -> dict[Any, float]:
    """For each place the rate that validates best, tried further while the best lies on the edge.

    Args:
        places: place -> the runs at a rate.
        rates: place -> those to begin with.
    """
    tried, best = {place: sorted(each) for place, each in rates.items()}, {}
    for _ in range(EXTENSIONS + 1):
        planned = {(place, rate): places[place](rate) for place in places for rate in tried[place]}
        found = validated(*execute([*chain(*planned.values())]), planned)
        before = dict(tried)
        for place, each in before.items():
            score = {rate: found[place, rate] for rate in each}
            best[place] = max(score, key=score.__getitem__)
            ends = {each[0]: each[0] / FACTOR, each[-1]: each[-1] * FACTOR}
            tried[place] = sorted({*each, ends.get(best[place], best[place])})
        if tried == before:
            break
    return best


def validated(runs: pd.DataFrame, metrics: pd.DataFrame, planned: Mapping[Any, list[Experiment]]) -> dict[Any, float]:
    """Mean validation score of the runs of each place; a run that failed, or diverged, counts as 0."""
    percent = scores(runs, metrics, "val").drop_duplicates("key").set_index("key")["percent"]
    return {place: percent.reindex([one.key for one in each]).fillna(0).mean() for place, each in planned.items()}
