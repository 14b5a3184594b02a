"""The main study: inputs x methods on real and simulated images, trained to a plateau.

runs, metrics = study(execute)     # rows of the study "main"

On each data set rates are searched, then the primary cells are scored, on folds or scenes that no search saw: five
runs of each on every data set, then the rest. Checks of the number of steps and of precision follow, then ablations,
then all other cells.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pandas as pd
from tqdm import tqdm

import peftlib as pl
from peftlib.experiments.config import BF16_FROZEN, Experiment
from peftlib.experiments.results import DONE
from peftlib.files import runs_dir
from peftlib.methods import METHODS
from peftlib.methods.inputs import STARTS
from peftlib.studies.protocol import Cell, Execute, Fields, Plan, Tables, final_runs, joined, search, varied

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
    "RGB × Full fine-tuning": (pl.RGB(), pl.Full()),
}
# What is done again: these with twice the steps; where a run is cheapest also in float32, and more with half the steps.
CHECKED, THOROUGH = ("RGB × LoRA", "EMB × LoRA", "DEFLECT"), "eurosat"
PLATEAU = (*CHECKED, "Inflated × LoRA", "EMB × Frozen")


def _repeated(folds: int, repeats: int) -> tuple[Fields, ...]:
    return tuple({"fold": i % folds, "repeat": i // folds, "seed": i} for i in range(folds * repeats))


def _unseen(folds: int) -> tuple[Fields, ...]:
    return tuple({"fold": fold, "repeat": 100, "seed": 100 + fold} for fold in range(folds))


def _scenes(*seeds: int) -> tuple[Fields, ...]:  # each seed has scenes of its own
    return tuple({"seed": seed, "data": {"seed": seed}} for seed in seeds)


_BASE: Fields = {"method": pl.Frozen(), "batch_size": 16, "head_lr": 3e-3}
_SCENES: Fields = {"length": 2000, "size": 32}
# Patches cover 8 pixels, because labels are per pixel.
_PIXELS: Fields = _BASE | {"folds": 5, "image_size": 112, "batch_size": 8, "steps": 500}
_TRIES = 3  # the highest of four rates diverged in every cell of EuroSAT


def _masks(repeats: int, **fields) -> Plan:
    """Of a data set of masks, in five folds."""
    setting = Experiment(**_PIXELS, **fields)
    return Plan(setting=setting, searches=_unseen(1), finals=_repeated(5, repeats), tries=_TRIES)


PLANS = {
    "eurosat": Plan(
        setting=Experiment(dataset="eurosat", folds=5, val_share=0.2, image_size=56, steps=500, **_BASE),
        searches=_unseen(3),
        finals=_repeated(5, 3),
    ),
    "spectral_scenes": Plan(
        setting=Experiment(dataset="spectral_scenes", data=_SCENES, val_images=200, steps=1000, **_BASE),
        searches=_scenes(100),
        finals=_scenes(*range(10)),
        tries=_TRIES,
    ),
    "water": _masks(2, dataset="water", val_share=0.2, tile=64),
    "calfire": _masks(1, dataset="calfire", val_share=0.25),
    "marida": _masks(1, dataset="marida", val_share=0.25, tile=64),
}
_FEW: Fields = {"length": 192, "size": 28}
_PAPER: Fields = {"image_size": 224, "batch_size": 32, "steps": 5000, "decoder": "upernet"}
# What notebook 04 runs: a small grid here, this study's primary cells, or the paper's data sets on a GPU.
PROFILES: dict[str, dict[str, Plan]] = {
    "quick": {
        "spectral_scenes": Plan(
            setting=Experiment(
                dataset="spectral_scenes", image_size=28, val_images=64, steps=250, **_BASE | {"data": _FEW}
            ),
            searches=_scenes(100),
            finals=_scenes(0),
            tries=2,
            extensions=0,
        )
    },
    "real": PLANS,
    "paper": {
        name: Plan(
            setting=Experiment(dataset=name, **_BASE | _PAPER),
            searches=({"seed": 100},),
            finals=({"seed": 0}, {"seed": 1}, {"seed": 2}),
            tries=2,
            extensions=0,
            precision="bf16-mixed",
        )
        for name in ("so2sat", "brick_kiln", "forestnet", "burn_scars", "mados")
    },
}


def exploratory() -> dict[str, Cell]:
    """Every input with every method, with default options, but for the primary cells."""
    inputs = (pl.RGB(), pl.Inflated(), pl.EMB())
    every = {f"{i.label} × {m.label}": (i, m()) for m in METHODS.values() for i in inputs if not m.needs_auxiliary}
    return {name: cell for name, cell in every.items() if cell not in PRIMARY.values()}


def study(execute: Execute, plans: Mapping[str, Plan] = PLANS, cells: Mapping[str, Cell] | None = None) -> Tables:
    """Rows of all data sets that are there; those that are not are named in the end.

    Args:
        execute: runs experiments and gives their rows: ``peftlib.experiments.grid.execute``.
        cells: only the final runs of these; None is the primary ones, with checks, then ablations, then all others.
    """
    table = planned(plans, {**PRIMARY, **exploratory()} if cells is None else cells)
    if cells is None:
        print(table.to_string(index=False), flush=True)
    tables: list[Tables] = []
    absent: dict[str, Exception] = {}
    number = table.set_index("data set")[["searches", "final runs"]].sum(axis=1).groupby(level=0).sum()

    def kept(name: str, experiments: Sequence[Experiment]) -> Tables:
        tables.append(execute(experiments))
        runs, _ = tables[-1]
        if len(runs) and (runs["status"] != DONE).all():
            raise AllFailed(f"all {len(runs)} runs failed: {runs['error'].iloc[0]}")
        if cells is not None:
            tqdm.write(_time_left(number, name, joined(*tables)[0]), file=sys.stderr)
        return tables[-1]

    for part in (first, primary, checked, ablated, others) if cells is None else (partial(primary, cells=cells),):
        for name, plan in plans.items():
            try:
                if name not in absent:
                    part(partial(kept, name), plan)
            except (FileNotFoundError, AllFailed) as error:
                absent[name] = error
    for name, reason in absent.items():
        print(f"left out {name}: {reason}", flush=True)
    if not tables:
        raise FileNotFoundError(f"no data of {', '.join(absent)}; set PEFTLIB_DATA")
    return joined(*tables)


def summaries(runs: pd.DataFrame, metrics: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tables that are committed beside the rows, since predictions are too many to commit."""
    from peftlib.studies.contrasts import contrasts  # these read the plans above
    from peftlib.studies.pooled import confusions, pooled

    facts = runs, metrics, runs_dir() / "rows" / "predictions"
    return {"pooled": pooled(contrasts(runs, metrics), *facts), "confusions": confusions(*facts)}


class AllFailed(Exception):
    """Of a data set's runs none was finished: others of it would fail too."""


def _time_left(planned_runs: pd.Series, name: str, runs: pd.DataFrame) -> str:
    """Of data sets' planned runs those done on one, and how long all others take; not begun: as long as the average."""
    done = runs.groupby("dataset").agg(runs=("key", "nunique"), seconds=("wall_s", "mean"))
    done = done.reindex(planned_runs.index).fillna({"runs": 0, "seconds": runs["wall_s"].mean()})
    left = timedelta(seconds=round(((planned_runs - done["runs"]).clip(lower=0) * done["seconds"]).sum()))
    here = int(done["runs"][name])  # more than planned where a search was extended
    return f"{name}: {here} of {max(here, planned_runs[name])} runs; all data sets: {left} left, one by one"


def planned(plans: Mapping[str, Plan], cells: Mapping[str, Cell]) -> pd.DataFrame:
    """How many runs of how many steps each data set's searches and final runs take, if no search is extended."""
    rows = []
    for name, plan in plans.items():
        for role, some in (("final", some_of(cells, PRIMARY)), (EXPLORATORY, some_of(cells, exploratory()))):
            if not some:
                continue
            runs = plan.finals if role == "final" else plan.first_finals
            searched = plan.searches if role == "final" else plan.searches[:1]
            tries = sum(len(plan.begin_with(method)) for _, method in some.values())
            if role == "final":  # the rates of inputs, and how inflated kernels start
                inputs = {input for input, _ in some.values()}
                tries += sum(len(plan.begin_with(input)) for input in inputs)
                tries += (pl.Inflated() in inputs) * (len(STARTS) - 1)
            facts = {"data set": name, "role": role, "cells": len(some), "searches": tries * len(searched)}
            rows.append(facts | {"final runs": len(runs) * len(some), "steps each": plan.setting.steps})
    return pd.DataFrame(rows)


def some_of(cells: Mapping[str, Cell], kind: Mapping[str, Cell]) -> dict[str, Cell]:
    """Those of the cells that another dictionary has too."""
    return {name: cell for name, cell in cells.items() if cell in kind.values()}


def first(execute: Execute, plan: Plan) -> None:
    """Searches, and few final runs of the primary cells."""
    primary(execute, replace(plan, finals=plan.first_finals))


def primary(execute: Execute, plan: Plan, cells: Mapping[str, Cell] = PRIMARY) -> None:
    """Searches and final runs."""
    _, chosen = search(execute, plan, cells)
    execute(final_runs(chosen, plan.finals))


def checked(execute: Execute, plan: Plan) -> None:
    """Runs that say whether twice or half the steps, or float32, would change what is claimed."""
    _, chosen = search(execute, plan, PRIMARY)  # done already
    few, steps, thorough = plan.first_finals, plan.setting.steps, plan.setting.dataset == THOROUGH
    again = {name: chosen[name] for name in (PLATEAU if thorough else CHECKED)}
    runs = []
    for other in (steps // 2, 2 * steps) if thorough else (2 * steps,):
        runs += final_runs(again, few, role="plateau", steps=other)
    if thorough:
        reduced = {name: chosen[name] for name in CHECKED if chosen[name].precision == BF16_FROZEN}
        runs += final_runs(reduced, few, role="precision", precision="32-true")
    execute(runs)


def others(execute: Execute, plan: Plan) -> None:
    """All other cells: one search run a rate, few final runs."""
    _, chosen = search(execute, replace(plan, searches=plan.searches[:1]), exploratory())
    execute(final_runs(chosen, plan.first_finals, role=EXPLORATORY))


def ablated(execute: Execute, plan: Plan) -> None:
    """The runs of ``ablations``, on the data sets that have them."""
    if plan.setting.dataset not in ABLATED:
        return
    _, chosen = search(execute, plan, PRIMARY)  # done already
    few, again = plan.first_finals, ("DEFLECT", "EMB × LoRA")
    runs = [run for role, one in ablations(chosen) for run in final_runs({role: one}, few, role=role)]
    for init in range(100, 105):  # one fold, other initial weights of adapter and head
        runs += [varied(chosen[name], role="start", init=init, **few[0]) for name in again]
    execute(runs)


ABLATED = ("eurosat", "spectral_scenes")
# Each differs from DEFLECT as it is in one option of method or input.
_METHODS: tuple[Fields, ...] = (
    *({"stream": "carried"}, {"reference_grad": False}, {"rank": 2}, {"rank": 16}),
    *({"layers": layers} for layers in ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11))),
)
_INPUTS: tuple[Fields, ...] = ({"indices": ()}, {"cells": 2}, {"cells": 7}, {"pixels": 49}, {"width": 64})
_RATES = tuple(1.25e-4 * 4**i for i in range(6))
_SHARES = {"eurosat": (50, 100), "spectral_scenes": (20, 100, 500)}  # training images: 5 and 10 a class of EuroSAT


def ablations(chosen: Mapping[str, Experiment]) -> list[tuple[str, Experiment]]:
    """Role and experiment of what stands beside the grid, at the rates that were chosen for the primary cells."""
    deflect, lora = chosen["DEFLECT"], chosen["EMB × LoRA"]
    runs = [("ablation", replace(deflect, method=replace(deflect.method, **option))) for option in _METHODS]
    runs += [("ablation", replace(deflect, input=replace(deflect.input, **option))) for option in _INPUTS]
    runs += [("ablation", replace(lora, method=pl.LoRA(rank=6)))]
    for name in ("DEFLECT", "DEFLECT (constrain=False)", "EMB × LoRA"):
        runs += [("rate", replace(chosen[name], lr=rate)) for rate in _RATES]
    for part in ("input_lr", "head_lr"):
        runs += [("rate of a part", replace(deflect, **{part: getattr(deflect, part) * by})) for by in (0.25, 4)]
    for name in ("DEFLECT", "EMB × LoRA", "RGB × LoRA", "Inflated × LoRA", "EMB × Frozen"):
        runs += [("labels", replace(chosen[name], train_images=n)) for n in _SHARES[deflect.dataset]]
    return runs
