"""Before a study of hours: which of its data sets can be read and trained on, and what it will cost.

plans = with_settings(PROFILES["paper"], backbone="scalemae_large")
plans, tried = try_out(execute, plans, cells)
priced(plans, cells), priced(plans, cells, tried)        # on a card that is assumed; as measured on this machine
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from statistics import fmean

import pandas as pd
import torch
from timm.models.vision_transformer import VisionTransformer

import peftlib as pl
from peftlib.backbones.loading import encodes_gsd, load_backbone
from peftlib.data import DATASETS
from peftlib.experiments.config import Experiment
from peftlib.experiments.results import DONE
from peftlib.methods import Input, Method
from peftlib.model.adapted_vit import adapt, without_weights
from peftlib.model.costs import flops
from peftlib.studies.main import PRIMARY, some_of, planned
from peftlib.studies.protocol import Cell, Execute, Plan, joined
from peftlib.training.tasks import Classification, Segmentation

SIDES = {"so2sat": 32, "brick_kiln": 64, "forestnet": 332, "burn_scars": 512, "mados": 240}  # pixels, as published
BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")  # for all: arithmetic moves little
TRIAL = "trial"  # role of the short runs of ``try_out``
TRIAL_STEPS = 10
# One H100, assumed and not measured: a tenth of its peak in bfloat16, and what is usual in float32.
FLOP_S = {"bf16-mixed": 1e14, "bf16-frozen": 1e14, "32-true": 2.5e13}
LEAST_STEP_S = 0.03  # PyTorch takes so long to start the kernels of a step
READ_BYTES_S = 1e9  # images that were decoded before, made a batch and sent
RUN_S = 90  # beside the steps: weights, statistics of the images, validation, test


def with_settings(plans: Mapping[str, Plan], datasets=(), **fields) -> dict[str, Plan]:
    """Some of the plans (none named: all) with other fields of their settings; those that are empty stay.

    Where the backbone knows a ground sampling distance (Scale-MAE), ``res`` becomes that of the resized image. Raises
    ValueError for a data set that has no plan.
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


def try_out(execute: Execute, plans: Mapping[str, Plan], cells: Mapping[str, Cell]) -> tuple[dict[str, Plan], pd.DataFrame]:
    """Train and score a few steps of one cell on each data set: every image is read and checked, and time measured.

    Returns:
        The plans whose data set is fit, and the runs; what is wrong with the others is printed.
    """
    cell, tables, trials = next(iter(cells.values())), [], {}
    for name, plan in plans.items():
        short = min(TRIAL_STEPS, plan.setting.steps)
        (trials[name],) = plan.experiments(cell, plan.searches[:1], role=TRIAL, steps=short)
        try:
            tables.append(execute([trials[name]]))
        except (OSError, ValueError) as error:  # no data, no weights
            print(f"left out {name}: {error}", flush=True)
    if not tables:
        raise FileNotFoundError(f"no data of {', '.join(plans)}; set PEFTLIB_DATA")
    runs, _ = joined(*tables)
    for run in runs[runs["status"] != DONE].itertuples():
        print(f"left out {run.dataset}: {run.error}", flush=True)
    fit = set(runs.loc[runs["status"] == DONE, "dataset"])
    if not fit:
        raise ValueError(f"no data set is fit to be trained on; first: {runs['error'].iloc[0]}")
    return {name: plan for name, plan in plans.items() if plan.setting.dataset in fit}, runs


def priced(plans: Mapping[str, Plan], cells: Mapping[str, Cell], tried: pd.DataFrame | None = None) -> pd.DataFrame:
    """``planned`` with hours and days of one device, a run after the other.

    Args:
        tried: runs of ``try_out``, which say what set-up and a step take here; None assumes an H100.

    Returns:
        Columns of ``planned``, "hours" and "days"; the last row is the sum. Checks and ablations are not counted.
    """
    table = planned(plans, cells)
    hours = {name: _run_seconds(plan, cells, tried) / 3600 for name, plan in plans.items()}
    table["hours"] = (table["searches"] + table["final runs"]) * table["data set"].map(hours)
    total = {name: table[name].sum() for name in ("cells", "searches", "final runs", "hours")}
    table = pd.concat([table, pd.DataFrame([{"data set": "all", "role": ""} | total])], ignore_index=True)
    return table.assign(days=table["hours"] / 24).round({"hours": 3, "days": 2}).fillna({"steps each": ""})


def _run_seconds(plan: Plan, cells: Mapping[str, Cell], tried: pd.DataFrame | None) -> float:
    """Of an average run of a data set."""
    cells = some_of(cells, PRIMARY) or cells  # the others cost what these cost on average
    runs = [plan.experiments(cell, plan.searches[:1])[0] for cell in cells.values()]
    operations = {cell: step_operations(run) for cell, run in zip(cells, runs, strict=True)}
    one = runs[0]
    if tried is not None:
        run = tried[tried["dataset"] == one.dataset].iloc[0]
        step = run["step_ms"] / 1e3
        scale = fmean(operations.values()) / next(iter(operations.values()))
        return run["wall_s"] - run["steps"] * step + one.steps * step * scale
    cls = DATASETS[one.dataset]
    stored = 4 * len(getattr(cls, "all_bands", BANDS)) * SIDES.get(one.dataset, one.image_size) ** 2 * one.batch_size
    step = fmean(operations[cell] / FLOP_S[run.precision] for cell, run in zip(cells, runs, strict=True))
    return RUN_S + one.steps * (max(step, LEAST_STEP_S) + stored / READ_BYTES_S)


def step_operations(one: Experiment) -> int:
    """Floating-point operations of a training step of an experiment, decoder included; see ``costs.flops``."""
    fields = one.backbone, one.image_size
    found = _image_operations(*fields, one.method, one.input)
    if DATASETS[one.dataset].task == "segmentation":  # its decoder instead of a linear layer, whatever the cell
        bare = pl.Frozen(), pl.RGB()
        found += _image_operations(*fields, *bare, one.decoder) - _image_operations(*fields, *bare)
    return one.batch_size * found


@lru_cache(maxsize=2)
def _shape(backbone: str, size: int) -> VisionTransformer:
    return without_weights(load_backbone(backbone, "random", size))


@lru_cache(maxsize=256)
def _image_operations(backbone: str, size: int, method: Method, input: Input, decoder: str = "") -> int:
    with torch.random.fork_rng(devices=[]):
        model = adapt(_shape(backbone, size), method, BANDS, image_size=size, input=input)
        task = Segmentation(model, 2, decoder=decoder) if decoder else Classification(model, 2)
    return flops(model, task)[1]
