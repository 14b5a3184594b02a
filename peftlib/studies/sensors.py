"""Other sensors: adapters that were trained on one sensor's bands, tested on those of others without training.

The same simulated scenes, seen by each sensor. What was trained on a sensor itself is the ceiling of a transfer to it.

runs, metrics = study(execute)     # split "test": the sensor it was trained on; "hls, nearest": another, and how
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import peftlib as pl
from peftlib.data import EarthData, EarthDataset
from peftlib.experiments.config import Experiment
from peftlib.experiments.results import DONE, read_row, write_row
from peftlib.experiments.run import Resources, build_task
from peftlib.files import runs_dir
from peftlib.sensors.bands import SENSORS, BandSet
from peftlib.sensors.spectral_indices import DEFAULT_INDICES
from peftlib.studies.main import PLANS, PRIMARY
from peftlib.studies.protocol import Cell, Execute, Plan, Tables, final_runs, joined, search, varied
from peftlib.training.base import Task
from peftlib.training.fit import LAST, restore
from peftlib.training.tasks import predict_batches

SOURCE = "sentinel2"
# Without the two that measure the air: what stands in for them on another sensor would be far from what was trained on.
SOURCE_BANDS = tuple(band for band in SENSORS[SOURCE] if band not in ("B09", "B10"))
_WAVELENGTHS = pl.EMB(spectral="wavelengths", indices=DEFAULT_INDICES)  # the indices that EMB() finds on Sentinel-2
READERS: dict[str, Cell] = {
    "DEFLECT by bands": PRIMARY["DEFLECT"],
    "DEFLECT by wavelengths": (_WAVELENGTHS, pl.Deflect()),
    "EMB × LoRA by wavelengths": (_WAVELENGTHS, pl.LoRA()),
    "EMB × Frozen by wavelengths": (_WAVELENGTHS, pl.Frozen()),
    "RGB × LoRA": PRIMARY["RGB × LoRA"],
    "Inflated × LoRA": PRIMARY["Inflated × LoRA"],
}
TRAINED: dict[str, tuple[str, ...]] = {SOURCE: tuple(READERS)[:-1]}
TRAINED |= {"hls": ("DEFLECT by bands",), "landsat8": ("DEFLECT by bands",)}
TRAINED |= {"hyperspectral": ("DEFLECT by bands", "DEFLECT by wavelengths", "Inflated × LoRA")}


def study(
    execute: Execute, plan: Plan = PLANS["spectral_scenes"], trained: Mapping[str, Sequence[str]] = TRAINED,
    folder: Path | None = None,
) -> Tables:  # fmt: skip
    """Rates are chosen on all bands of Sentinel-2; what is trained there is tested on the other sensors too.

    ``trained``: sensor -> what is trained on it; ``folder``: of the rows, None is ``runs/rows``. What is trained on
    Sentinel-2 keeps its last weights there.
    """
    folder = folder or runs_dir() / "rows"
    names = {name for each in trained.values() for name in each}
    searched, best = search(execute, plan, {name: cell for name, cell in READERS.items() if name in names})
    runs = []
    for sensor, names_here in trained.items():
        bands = SOURCE_BANDS if sensor == SOURCE else None
        there = {name: varied(best[name], role=name, data={"sensor": sensor}, bands=bands) for name in names_here}
        runs += final_runs(there, plan.first_finals)
    execute(runs, folder=folder, resources=Resources(keep=True))
    others = [sensor for sensor in trained if sensor != SOURCE]
    for one in runs:
        if one.data["sensor"] == SOURCE:
            score_elsewhere(one, others, folder)
    return joined(*searched, execute(runs, folder=folder))


def score_elsewhere(experiment: Experiment, others: Sequence[str], folder: Path) -> None:
    """Add to a run's row its scores on other sensors, as splits "hls, nearest", from the weights that it kept."""
    path = folder / f"{experiment.key}.json"
    row = read_row(path)
    if row is None or row["status"] != DONE or any(", " in split for split in row["metrics"]):
        return
    task = build_task(experiment, EarthData(*experiment.parts(), experiment.batch_size))
    restore(task, folder / "work" / row["key"] / LAST)
    for sensor in others:
        found = readings(task, experiment, sensor)
        row["metrics"] |= {f"{sensor}, {how}": scores for how, scores in found.items()}
    write_row(path, row)


def readings(task: Task, experiment: Experiment, sensor: str) -> dict[str, dict[str, float]]:
    """Scores of a trained task on another sensor's test scenes, by how it is given that sensor's bands.

    ``transfer`` and, with statistics of the new sensor's unlabelled training scenes, ``refitted``, where the adapter
    can read any bands. Where it cannot, the image is made to have the bands that it was trained on: each by the
    ``nearest`` band there is, or ``interpolated`` over wavelength between two.
    """
    there = replace(experiment, data={**experiment.data, "sensor": sensor}, bands=None)
    train, val, scenes = there.parts()
    assert scenes is not None  # a final run
    data, model = EarthData(train, val, scenes, experiment.batch_size), task.model
    found, batches = {}, data.test_dataloader()
    if not model.input.reads_any_bands:
        for how in ("nearest", "interpolated"):
            matrix = stand_ins(model.bands, scenes.band_set, how)
            filled = [b | {"image": torch.einsum("oc,bchw->bohw", matrix, b["image"])} for b in batches]
            found[how] = scored(task, filled, scenes)
        return found
    task.model = pl.transfer(model, scenes.bands, scenes.sensor)
    found["transfer"] = scored(task, batches, scenes)
    if task.model.auxiliary is not None:
        task.model.fit_normalization(data.train_dataloader())
        found["refitted"] = scored(task, batches, scenes)
    task.model = model
    return found


def stand_ins(wanted: BandSet, given: BandSet, how: str) -> Tensor:
    """(wanted, given) what makes the bands that a model wants of those that a sensor has, by centre wavelength."""
    have, want = (np.log(bands.wavelengths) for bands in (given, wanted))
    if how == "nearest":
        return torch.eye(len(have))[np.abs(want[:, None] - have).argmin(1)]
    order = np.argsort(have)
    columns = [np.interp(want, have[order], one) for one in np.eye(len(have))[:, order]]
    return torch.tensor(np.stack(columns, axis=1), dtype=torch.float32)


def scored(task: Task, batches: Iterable[dict], scenes: EarthDataset) -> dict[str, float]:
    """The task's metrics on batches, and those that the scenes have of their own."""
    logits, truth = map(torch.cat, zip(*predict_batches(task, batches), strict=True))
    found = task.metrics.clone()(logits.argmax(1), truth)
    own = [score(logits, truth) for score in scenes.evaluations().values()]
    return {name: float(value) for scores in (found, *own) for name, value in scores.items()}
