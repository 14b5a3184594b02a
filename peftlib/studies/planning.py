"""Before a study of hours: which data sets can be read and trained on, and what the whole will cost."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from statistics import fmean

import pandas as pd
import torch

import peftlib as pl
from peftlib.backbones.loading import encodes_gsd, load_backbone
from peftlib.data import DATASETS
from peftlib.experiments.config import Experiment
from peftlib.methods import Input, Method
from peftlib.model.adapted_vit import adapt
from peftlib.model.costs import flops
from peftlib.studies.main import PRIMARY, planned, some_of
from peftlib.studies.protocol import Cell, Execute, Plan, joined
from peftlib.training.tasks import Classification, Segmentation

SIDES = {"so2sat": 32, "brick_kiln": 64, "forestnet": 332, "burn_scars": 512, "mados": 240}  # pixels, as published
BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")  # in the place of all: they cost little
TRIAL_STEPS = 10
# One H100, assumed, not measured: operations (a tenth of its peak in bfloat16) and bytes of images read a second.
SPEED, BYTES = {"bf16-mixed": 1e14, "bf16-frozen": 1e14, "32-true": 2.5e13}, 1e9
LEAST, BESIDE = 0.03, 90  # seconds: of a step, to start its kernels; of a run beside its steps, to begin and evaluate


def with_settings(plans: Mapping[str, Plan], datasets: Sequence[str] = (), **fields) -> dict[str, Plan]:
    """Plans of some data sets (none named: all) with other fields of their settings; empty fields change nothing.

    Where a backbone encodes the ground sampling distance (Scale-MAE), ``res`` is that of the resized images. Raises
    ValueError for a data set without a plan.
    """
    if unknown := sorted(set(datasets) - set(plans)):
        raise ValueError(f"no plan for {', '.join(unknown)}; choose from {', '.join(plans)}")
    found = {}
    for name in datasets or plans:
        one = replace(plans[name].setting, **{field: value for field, value in fields.items() if value})
        if encodes_gsd(one.backbone) and name in SIDES:
            one = replace(one, res=round(DATASETS[name].gsd * SIDES[name] / one.image_size, 4))
        found[name] = replace(plans[name], setting=one)
    return found


def try_out(
    execute: Execute, plans: Mapping[str, Plan], cells: Mapping[str, Cell]
) -> tuple[dict[str, Plan], pd.DataFrame]:
    """Train and score a few steps of the first cell on each data set: all images are read, checked, and time is taken.

    Returns:
        The plans whose data set is fit, and the runs; what is wrong with the others is printed.
    """
    tables, wrong = [], {}
    for name, plan in plans.items():
        steps = min(TRIAL_STEPS, plan.setting.steps)
        try:
            tables.append(
                execute(plan.experiments(next(iter(cells.values())), plan.searches[:1], role="trial", steps=steps))
            )
            wrong[name] = tables[-1][0]["error"].iloc[0]
        except (OSError, ValueError) as error:  # no data, no weights
            wrong[name] = str(error)
        if wrong[name]:
            print(f"left out {name}: {wrong[name]}", flush=True)
    if all(wrong.values()):
        raise ValueError(f"no data set is fit to be trained on; {next(iter(wrong))}: {next(iter(wrong.values()))}")
    return {name: plan for name, plan in plans.items() if not wrong[name]}, joined(*tables)[0]


def priced(plans: Mapping[str, Plan], cells: Mapping[str, Cell], tried: pd.DataFrame | None = None) -> pd.DataFrame:
    """``planned`` with hours and days of one device, one run after the other, and their sum as last row.

    ``tried`` are runs of ``try_out``, which say what set-up and a step take here; None assumes an H100. Cells that are
    not primary cost what primary ones do on average; checks and ablations are not counted.
    """
    table = planned(plans, cells)
    hours = {name: _run_seconds(plan, some_of(cells, PRIMARY), tried) / 3600 for name, plan in plans.items()}
    table["hours"] = (table["searches"] + table["final runs"]) * table["data set"].map(hours)
    table.loc[len(table)] = table[["cells", "searches", "final runs", "hours"]].sum()
    table = table.fillna({"data set": "all", "role": "", "steps each": 0})
    table = table.astype(dict.fromkeys(("cells", "searches", "final runs", "steps each"), int))
    return table.assign(days=table["hours"] / 24).round({"hours": 3, "days": 2})


def _run_seconds(plan: Plan, cells: Mapping[str, Cell], tried: pd.DataFrame | None) -> float:
    """Of a run of a data set, on average over cells."""
    runs = [plan.experiments(cell, plan.searches[:1])[0] for cell in cells.values()]
    operations, one = [step_operations(run) for run in runs], runs[0]
    if tried is not None:
        run = tried[tried["dataset"] == one.dataset].iloc[0]
        step = run["step_ms"] / 1e3
        return run["wall_s"] - run["steps"] * step + one.steps * step * fmean(operations) / operations[0]
    bands, side = getattr(DATASETS[one.dataset], "all_bands", BANDS), SIDES.get(one.dataset, one.image_size)
    reading = 4 * one.batch_size * len(bands) * side**2 / BYTES
    step = fmean(number / SPEED[run.precision] for number, run in zip(operations, runs, strict=True))
    return BESIDE + one.steps * (max(step, LEAST) + reading)


def step_operations(one: Experiment) -> int:
    """Floating-point operations of a training step of an experiment, decoder included; see ``costs.flops``."""
    where = one.backbone, one.image_size
    found = _image_operations(*where, one.method, one.input)
    if DATASETS[one.dataset].task == "segmentation":  # a decoder costs the same whatever the cell
        bare = pl.Frozen(), pl.RGB()
        found += _image_operations(*where, *bare, one.decoder) - _image_operations(*where, *bare)
    return one.batch_size * found


@lru_cache(maxsize=256)
def _image_operations(backbone: str, size: int, method: Method, input: Input, decoder: str = "") -> int:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = adapt(load_backbone(backbone, "random", size), method, BANDS, image_size=size, input=input)
        task = Segmentation(model, 2, decoder=decoder) if decoder else Classification(model, 2)
    return flops(model, task)[1]
