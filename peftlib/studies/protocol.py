"""How a comparison is run: validation images choose the rates of each cell, the test part scores it once.

tables, chosen = search(execute, plan, cells)     # cell -> the experiment at the rates that validate best

First the rate of each input, with frozen blocks; then the rate of each cell's method, at that of its input. Each is
tried further until the best lies inside.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import pandas as pd
import torch

import peftlib as pl
from peftlib.experiments.config import BF16_FROZEN, SEARCH, Experiment
from peftlib.experiments.results import scores
from peftlib.methods import Input, Method
from peftlib.methods.inputs import STARTS

Cell = tuple[Input, Method]
Tables = tuple[pd.DataFrame, pd.DataFrame]  # runs and metrics
Execute = Callable[..., Tables]  # of experiments, such as peftlib.experiments.grid.execute
Fields = dict[str, Any]
FACTOR = 4  # between rates


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A data set's part of a study.

    Attributes:
        setting: the experiment, of which cell and rates are filled in.
        searches: fields of the runs that choose a rate together: their folds and seeds are no final's.
        finals: fields of the final runs of a primary cell; others have the first ``few``.
        tries: how many rates to begin with, the middle ones of those that inputs and methods name.
        extensions: how often a best rate may lie on the edge, and one more be tried.
        precision: of the runs in which something is frozen; None is the fastest of this machine.
    """

    setting: Experiment
    searches: tuple[Fields, ...]
    finals: tuple[Fields, ...]
    few: int = 5
    tries: int = 4
    extensions: int = 3
    precision: str | None = None

    def experiments(self, cell: Cell, runs: Sequence[Fields], **fields) -> list[Experiment]:
        """One for each of ``runs``: fields in which they differ."""
        input, method = cell
        how: Fields = {"input": input, "method": method, "precision": fitting(method, self.precision), "init": None}
        return [varied(self.setting, **how, **fields, **run) for run in runs]

    @property
    def first_finals(self) -> tuple[Fields, ...]:
        return self.finals[: self.few]

    def begin_with(self, part: Input | Method) -> Sequence[float]:
        rates = part.learning_rates
        return rates[max(len(rates) - self.tries, 0) // 2 :][: self.tries]


def varied(one: Experiment, data: Mapping[str, Any] | None = None, **fields) -> Experiment:
    """An experiment with other fields; ``data`` adds to the options that it has, such as another seed of its scenes."""
    return replace(one, data={**one.data, **(data or {})}, **fields)


def fitting(method: Method, precision: str | None = None) -> str:
    """The precision of a method's runs: the one given, None is the fastest here; autocast where nothing is frozen."""
    if precision is None:
        able = torch.cpu.get_capabilities()
        fast = torch.cuda.is_available() or able.get("avx512_bf16") or able.get("amx_bf16")
        precision = BF16_FROZEN if fast else "32-true"
    return "bf16-mixed" if precision == BF16_FROZEN and method.name == "full" else precision


def search(
    execute: Execute, plan: Plan, cells: Mapping[str, Cell], metric: str | None = None
) -> tuple[list[Tables], dict[str, Experiment]]:
    """Tables of all searches, as they were made; for each cell a final experiment at the rates that validate best.

    ``metric``: to choose by; None is the data set's primary one. The highest counts, of "loss" the lowest.
    """
    tables: list[Tables] = []

    def kept(experiments: Sequence[Experiment]) -> Tables:
        tables.append(execute(experiments))
        return tables[-1]

    tried = partial(plan.experiments, runs=plan.searches, role=SEARCH)
    best = partial(best_inside, kept, extensions=plan.extensions, metric=metric)
    inputs = {input for input, _ in cells.values() if input.learning_rates}
    frozen = {i: lambda rate, i=i: tried((i, pl.Frozen()), input_lr=rate) for i in inputs}
    input_lr = best(frozen, {i: plan.begin_with(i) for i in inputs})
    inflated = pl.Inflated()
    if inflated in inputs:  # how its kernels start is chosen too
        starts = {start: tried((pl.Inflated(start), pl.Frozen()), input_lr=input_lr[inflated]) for start in STARTS}
        found = validated(kept([*chain(*starts.values())]), starts, metric)
        chosen = pl.Inflated(max(starts, key=found.__getitem__))
        input_lr[chosen] = input_lr[inflated]
        cells = {n: (chosen if i == inflated else i, method) for n, (i, method) in cells.items()}
    rates: dict[str, Fields] = {n: {"input_lr": input_lr[i]} if i in input_lr else {} for n, (i, _) in cells.items()}
    tuned = {n: method for n, (_, method) in cells.items() if method.learning_rates}
    places = {n: lambda rate, n=n: tried(cells[n], lr=rate, **rates[n]) for n in tuned}
    for n, lr in best(places, {n: plan.begin_with(method) for n, method in tuned.items()}).items():
        rates[n] |= {"lr": lr}
    return tables, {n: plan.experiments(cell, [{}], **rates[n])[0] for n, cell in cells.items()}


def final_runs(chosen: Mapping[Any, Experiment], runs: Sequence[Fields], **fields) -> list[Experiment]:
    """The chosen experiments on each fold or seed: a fold of all cells, then the next."""
    return [varied(one, init=None, **fields, **run) for run in runs for one in chosen.values()]


def best_inside(
    execute: Execute, places: Mapping[Any, Callable[[float], list[Experiment]]],
    rates: Mapping[Any, Sequence[float]], extensions: int, metric: str | None = None,
) -> dict[Any, float]:  # fmt: skip
    """For each place the rate that validates best, tried further while the best lies on the edge.

    ``places``: place -> the runs at a rate; ``rates``: place -> those to begin with.
    """
    tried, best = {place: sorted(each) for place, each in rates.items()}, {}
    for _ in range(extensions + 1):
        planned = {(place, rate): places[place](rate) for place in places for rate in tried[place]}
        found = validated(execute([*chain(*planned.values())]), planned, metric)
        before = dict(tried)
        for place, each in before.items():
            score = {rate: found[place, rate] for rate in each}
            best[place] = max(score, key=score.__getitem__)
            ends = {each[0]: each[0] / FACTOR, each[-1]: each[-1] * FACTOR}
            tried[place] = sorted({*each, ends.get(best[place], best[place])})
        if tried == before:
            break
    return best


def validated(tables: Tables, planned: Mapping[Any, list[Experiment]], metric: str | None = None) -> dict[Any, float]:
    """Mean validation score of the runs of each place; a run that failed, or diverged, counts as the worst."""
    percent = scores(*tables, "val", metric).drop_duplicates("key").set_index("key")["percent"]
    percent, worst = (-percent, -float("inf")) if metric == "loss" else (percent, 0)
    return {place: percent.reindex([one.key for one in each]).fillna(worst).mean() for place, each in planned.items()}


def joined(*tables: Tables) -> Tables:
    """Runs and metrics of several calls of ``execute`` as one pair."""
    runs, metrics = (pd.concat(parts, ignore_index=True) for parts in zip(*tables, strict=True))
    return runs.drop_duplicates(["key", "role"]), metrics.drop_duplicates(["key", "split", "metric"])
