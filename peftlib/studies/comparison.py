"""The comparison of inputs and methods: what is searched for each cell, by what it is chosen, what is run in the end.

runs, metrics = study(execute)     # rows of the study "preliminary"
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pandas as pd

import peftlib as pl
from peftlib.experiments.config import SEARCH, Experiment
from peftlib.experiments.results import scores
from peftlib.methods import Input, Method
from peftlib.methods.lora import LoRA

Execute = Callable[[Sequence[Experiment]], tuple[pd.DataFrame, pd.DataFrame]]
# The primary cells: input and method, both with their default options.
CELLS: dict[str, tuple[Input, Method]] = {
    "RGB × LoRA": (pl.RGB(), LoRA()),
    "RGB × Full": (pl.RGB(), pl.Full()),
    "Inflated × LoRA": (pl.Inflated(), LoRA()),
    "EMB × Frozen": (pl.EMB(), pl.Frozen()),
    "EMB × LoRA": (pl.EMB(), LoRA()),
    "DEFLECT": (pl.EMB(), pl.Deflect()),
}
_BASE = {"method": pl.Frozen(), "batch_size": 16, "steps": 500, "head_lr": 3e-3, "image_size": 56}
# Each data set's experiment, of which cell and rates are filled in, and the fields in which its final runs differ.
SETTINGS: dict[str, tuple[Experiment, tuple[dict, ...]]] = {
    "eurosat": (
        Experiment(dataset="eurosat", folds=3, val_share=0.2, **_BASE),
        tuple({"fold": fold, "seed": fold} for fold in range(3)),
    ),
    "spectral_scenes": (
        Experiment(dataset="spectral_scenes", data={"length": 1000, "size": 56}, val_images=200, **_BASE),
        tuple({"seed": seed} for seed in range(3)),
    ),
}
# A search shares neither folds nor seeds with the final runs.
UNSEEN = {"seed": 100, "repeat": 100, "fold": 0, "role": SEARCH}


def rates(input: Input, method: Method) -> list[dict]:
    """The two tries of a cell: the middle two rates that input and method name, each at its own, low with low."""
    names = {"input_lr": input.learning_rates, "lr": method.learning_rates}
    return [{name: tries[place] for name, tries in names.items() if tries} for place in (1, 2)]


def searches(setting: Experiment, cells: Mapping[str, tuple[Input, Method]] = CELLS) -> dict[str, list[Experiment]]:
    """For each cell the experiments that its rates are chosen by."""
    return {
        name: [replace(setting, input=input, method=method, **rate, **UNSEEN) for rate in rates(input, method)]
        for name, (input, method) in cells.items()
    }


def chosen(tried: Sequence[Experiment], runs: pd.DataFrame, metrics: pd.DataFrame) -> Experiment:
    """Of some experiments the one with the highest primary metric on validation images.

    Raises:
        ValueError: none of them has finished.
    """
    found = scores(runs[runs["role"] == SEARCH], metrics, split="val").drop_duplicates("key").set_index("key")
    known = {one.key: one for one in tried}
    percent = found["percent"].reindex(list(known)).dropna()
    if percent.empty:
        raise ValueError(f"no search of {tried[0].input} × {tried[0].method} on {tried[0].dataset} has finished")
    return known[percent.idxmax()]


def study(
    execute: Execute,
    settings: Mapping[str, tuple[Experiment, Sequence[dict]]] = SETTINGS,
    cells: Mapping[str, tuple[Input, Method]] = CELLS,
    role: str = "final",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All searches, then each cell at its chosen rates on all folds or seeds; the test part is scored by these alone.

    Args:
        execute: runs experiments and gives their rows: ``peftlib.experiments.grid.execute``.
        role: of the final runs.
    """
    planned = [searches(setting, cells) for setting, _ in settings.values()]
    runs, metrics = execute([one for tries in planned for each in tries.values() for one in each])
    finals = [
        replace(chosen(each, runs, metrics), role=role, **({"repeat": 0} | fields))
        for tries, (_, runs_of) in zip(planned, settings.values(), strict=True)
        for each in tries.values()
        for fields in runs_of
    ]
    return joined((runs, metrics), execute(finals))


def joined(*tables: tuple[pd.DataFrame, pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs and metrics of several calls of ``execute`` as one pair."""
    runs, metrics = (pd.concat(parts, ignore_index=True) for parts in zip(*tables, strict=True))
    return runs.drop_duplicates(["key", "role"]), metrics.drop_duplicates(["key", "split", "metric"])
