"""The comparison of inputs and methods: what is searched for each cell, by what it is chosen, what is run in the end.

runs, metrics = study(execute)     # rows of the study "preliminary"
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

import peftlib as pl
from peftlib.experiments.config import SEARCH, Experiment
from peftlib.experiments.results import scores
from peftlib.methods import Input, Method
from peftlib.methods.lora import LoRA
from peftlib.model.precision import BF16_FROZEN

ROWS = "preliminary"  # under which the rows are committed
Execute = Callable[[Sequence[Experiment]], tuple[pd.DataFrame, pd.DataFrame]]
Fields = dict[str, Any]
Setting = tuple[Experiment, tuple[Fields, ...]]
# The primary cells: input and method, both with their default options.
CELLS: dict[str, tuple[Input, Method]] = {
    "RGB × LoRA": (pl.RGB(), LoRA()),
    "RGB × Full": (pl.RGB(), pl.Full()),
    "Inflated × LoRA": (pl.Inflated(), LoRA()),
    "EMB × Frozen": (pl.EMB(), pl.Frozen()),
    "EMB × LoRA": (pl.EMB(), LoRA()),
    "DEFLECT": (pl.EMB(), pl.Deflect()),
}
_SCENES: Fields = {"length": 1000, "size": 56}


def fitting(method: Method, precision: str | None = None) -> str:
    """The precision of a method's runs: the one given, None is the fastest here; float32 where nothing is frozen."""
    if precision is None:
        able = torch.cpu.get_capabilities()
        fast = torch.cuda.is_available() or able.get("avx512_bf16") or able.get("amx_bf16")
        precision = BF16_FROZEN if fast else "32-true"
    return "32-true" if precision == BF16_FROZEN and method.name == "full" else precision


_BASE: Fields = {"method": pl.Frozen(), "batch_size": 16, "steps": 500, "head_lr": 3e-3, "image_size": 56}
# Each data set's experiment, of which cell and rates are filled in, and the fields in which its final runs differ.
SETTINGS: dict[str, Setting] = {
    "eurosat": (
        Experiment(dataset="eurosat", folds=3, val_share=0.2, **_BASE),
        tuple({"fold": fold, "seed": fold} for fold in range(3)),
    ),
    "spectral_scenes": (  # each seed has scenes of its own
        Experiment(dataset="spectral_scenes", data=_SCENES | {"seed": 100}, val_images=200, **_BASE),
        tuple({"seed": seed, "data": _SCENES | {"seed": seed}} for seed in range(3)),
    ),
}
_SMALL: Fields = {"length": 192, "size": 28}
# Twice the steps change nothing.
_QUICK: Fields = {"data": _SMALL | {"seed": 100}, "image_size": 28, "val_images": 64, "steps": 250}
_PAPER: Fields = {"image_size": 224, "batch_size": 32, "steps": 5000, "decoder": "upernet", "precision": "bf16-mixed"}
_PAPER_SETTING = replace(SETTINGS["eurosat"][0], folds=0, val_share=0.0, **_PAPER)
_PAPER_SETS = ("so2sat", "brick_kiln", "forestnet", "burn_scars", "mados")
# What notebook 04 runs by default: a small grid here, the committed study, or the paper's data sets on a GPU.
PROFILES: dict[str, dict[str, Setting]] = {
    "quick": {
        "spectral_scenes": (
            replace(SETTINGS["spectral_scenes"][0], **_QUICK, precision=fitting(pl.Frozen())),
            ({"data": _SMALL},),
        )
    },
    "real": SETTINGS,
    "paper": {
        name: (replace(_PAPER_SETTING, dataset=name), ({"seed": 0}, {"seed": 1}, {"seed": 2})) for name in _PAPER_SETS
    },
}
# A search shares neither folds nor seeds with the final runs.
UNSEEN: Fields = {"seed": 100, "repeat": 100, "fold": 0, "role": SEARCH}


def tries(setting: Experiment, input: Input, method: Method) -> list[Experiment]:
    """The two that choose a cell's rates: the middle ones that input and method name, each its own, low with low."""
    named = {"input_lr": input.learning_rates, "lr": method.learning_rates}
    chosen: list[Fields] = [{name: known[i] for name, known in named.items() if known} for i in (1, 2)]
    precision = fitting(method, setting.precision)
    return [replace(setting, input=input, method=method, precision=precision, **rates, **UNSEEN) for rates in chosen]


def search(
    execute: Execute, planned: Mapping[Any, Sequence[Experiment]], metric: str | None = None
) -> tuple[pd.DataFrame, pd.DataFrame, dict[Any, Experiment]]:
    """Run tries, and choose by validation images.

    Args:
        planned: place -> its tries.
        metric: to choose by; None is the data set's primary one. The highest counts, of "loss" the lowest.

    Returns:
        runs, metrics, and for each place its choice, as a final experiment.

    Raises:
        ValueError: no try of a place has finished.
    """
    runs, metrics = execute([one for each in planned.values() for one in each])
    percent = scores(runs, metrics, "val", metric).drop_duplicates("key").set_index("key")["percent"]
    best = {}
    for place, each in planned.items():
        known = {one.key: one for one in each}
        found = percent.reindex(list(known)).dropna()
        if found.empty:
            raise ValueError(f"no search of {place} has finished")
        key = found.idxmin() if metric == "loss" else found.idxmax()
        best[place] = replace(known[key], role="final", seed=0, init=0, repeat=0)
    return runs, metrics, best


def study(
    execute: Execute,
    settings: Mapping[str, Setting] = SETTINGS,
    cells: Mapping[str, tuple[Input, Method]] = CELLS,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All searches, then each cell at its chosen rates on all folds or seeds; the test part is scored by these alone.

    Args:
        execute: runs experiments and gives their rows: ``peftlib.experiments.grid.execute``.
    """
    planned = {(data, cell): tries(settings[data][0], *cells[cell]) for data in settings for cell in cells}
    *searched, best = search(execute, planned)
    finals = [replace(one, init=None, **fields) for (data, _), one in best.items() for fields in settings[data][1]]
    return joined(searched, execute(finals))


def joined(*tables: Sequence[pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs and metrics of several calls of ``execute`` as one pair."""
    runs, metrics = (pd.concat(parts, ignore_index=True) for parts in zip(*tables, strict=True))
    return runs.drop_duplicates(["key", "role"]), metrics.drop_duplicates(["key", "split", "metric"])
