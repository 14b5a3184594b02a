"""The study of sensors: adapters that were trained on one sensor's bands, tested on those of others.

The same simulated scenes, seen by each sensor (``spectral_scenes``). A transferred model has seen no label of the
sensor that it is tested on; what was trained there is the ceiling.

python -m peftlib sensors     # writes data/results/beyond.csv, a quarter of an hour on two idle cores
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from peftlib.data import EarthData
from peftlib.experiments.config import Run
from peftlib.experiments.metamers import pair_accuracy
from peftlib.experiments.results import RESULTS, read_table
from peftlib.experiments.run import untrained
from peftlib.files import atomic_path, root
from peftlib.methods import Deflect
from peftlib.model.adapted_vit import count_parameters
from peftlib.model.transfer import transfer
from peftlib.sensors.bands import SENSORS, BandSet
from peftlib.sensors.spectral_indices import DEFAULT_INDICES
from peftlib.studies.comparison import chosen, settings
from peftlib.training.fit import fit
from peftlib.training.tasks import Segmentation, logits_and_truth

SOURCE, HYPERSPECTRAL = "sentinel2", "hyperspectral"
UNSEEN = ("hls", "landsat8", HYPERSPECTRAL)
SENSORS_SEEN = (SOURCE, *UNSEEN)
# Without the two that measure the air: what stands in for them on another sensor would be far from what was trained on.
SOURCE_BANDS = tuple(band for band in SENSORS[SOURCE] if band not in ("B09", "B10"))
# How a model that was trained on other bands is given a sensor's: see ``readings``.
OWN, TRANSFER, REFITTED, NEAREST, INTERPOLATED = "own bands", "transfer", "refitted", "nearest", "interpolated"
COLUMNS = (
    *("dataset", "trained_on", "sensor", "reading", "method", "options", "backbone", "images", "epochs", "lr", "seed"),
    *("tuned", "tuned_percent", "split", "metric", "value", "key"),
)
BY_BANDS = Deflect()
BY_WAVELENGTHS = Deflect(spectral="wavelengths", indices=DEFAULT_INDICES)  # those that Deflect() finds on Sentinel-2


def plan(
    seeds: Sequence[int] = (0, 1, 2),
    trained_on: Sequence[str] = (SOURCE,),
    length: int = 192,
    **changes,
) -> list[Run]:
    """What is trained: on Sentinel-2 to be transferred; on another sensor, where it is asked for, as the ceiling.

    Learning rates are those that validation on Sentinel-2 chose for the committed comparison.

    Args:
        trained_on: some of ``SENSORS_SEEN``.
        length: scenes that train, and that test.
        changes: of fields of the runs, such as ``epochs=1``.
    """
    (setting,) = settings("quick")
    rows = read_table("quick")
    deflect, lora = chosen(rows, setting, ("deflect", "lora")).values()
    colours = chosen(rows, setting, ("lora",), rgb=True)["lora"]
    by_bands, by_wavelengths = (replace(deflect, method=method) for method in (BY_BANDS, BY_WAVELENGTHS))
    runs = [replace(run, bands=SOURCE_BANDS) for run in (by_bands, by_wavelengths, colours)]
    for sensor in UNSEEN:
        there = (by_bands, by_wavelengths, lora) if sensor == HYPERSPECTRAL else (by_bands,)
        runs += [replace(run, data={**run.data, "sensor": sensor}) for run in there]
    runs = [replace(run, data={**run.data, "length": length}) for run in runs if sensor_of(run) in trained_on]
    return [replace(run, seed=seed, **changes) for seed in seeds for run in runs]


def study(runs: Iterable[Run], folder: str | Path, unseen: Sequence[str] = ("hls", "landsat8")) -> pd.DataFrame:
    """Train each run, test it on its own sensor, and what was trained on Sentinel-2 on the unseen ones too.

    Args:
        runs: of ``plan``.
        folder: of checkpoints; a training that is finished there is not repeated.
        unseen: other sensors to test on what was trained on Sentinel-2.

    Returns:
        a row a run, sensor, reading and metric, with ``COLUMNS``.
    """
    pairs = [(sensor_of(run), run) for run in runs]
    pairs += [(other, run) for other in unseen for sensor, run in pairs if sensor == SOURCE]
    pairs = sorted(pairs, key=lambda pair: SENSORS_SEEN.index(pair[0]))  # a sensor's scenes are kept in memory
    rows = [row for sensor, run in pairs for row in tested(run, sensor, Path(folder))]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def tested(run: Run, sensor: str, folder: Path) -> list[dict]:
    """The rows of one run on one sensor, trained first where that is not done."""
    task = trained(run, folder / run.key)
    counts = count_parameters(task.model)
    facts = {name: getattr(run, name) for name in ("dataset", "backbone", "epochs", "lr", "seed", "key")}
    facts |= {"trained_on": sensor_of(run), "sensor": sensor, "split": "test", "images": int(run.data["length"])}
    facts |= {"method": run.method.name, "options": json.dumps(run.method.options(), sort_keys=True)}
    facts |= {"tuned": counts["tuned"], "tuned_percent": counts["percent"]}
    return [
        facts | {"reading": reading, "metric": name, "value": value}
        for reading, metrics in readings(task, run, sensor).items()
        for name, value in metrics.items()
        if not name.startswith("iou_")
    ]


def write(rows: pd.DataFrame) -> Path:
    """Write the rows of ``study`` to ``data/results/beyond.csv``, for committing."""
    path = root() / RESULTS / "beyond.csv"
    with atomic_path(path) as temporary:
        order = ["trained_on", "sensor", "method", "options", "reading", "seed", "metric"]
        rows.sort_values(order, kind="stable").to_csv(temporary, index=False, float_format="%.6g")
    return path


def read() -> pd.DataFrame:
    """The committed rows of ``study``."""
    return pd.read_csv(root() / RESULTS / "beyond.csv")


def sensor_of(run: Run) -> str:
    """Where a run is trained."""
    return run.data.get("sensor", SOURCE)


def trained(run: Run, folder: Path) -> Segmentation:
    """The task of a run after training, with its best epoch; the test part plays no role."""
    train, val, _ = replace(run, stage="search").parts()
    data = EarthData(train, val, None, run.batch_size, seed=run.seed)
    task = untrained(run, data)
    fit(task, data, folder, run.epochs, run.seed, run.patience, precision=run.precision, accelerator="cpu")
    return task


def readings(task: Segmentation, run: Run, sensor: str) -> dict[str, dict[str, float]]:
    """Scores of a trained task on a sensor's test scenes, by how it is given the sensor's bands.

    ``transfer`` and, with statistics of the new sensor's unlabelled training scenes, ``refitted``, where the adapter
    can read any bands. Where it cannot, the image is made to have the bands that it was trained on: each by the
    ``nearest`` band there is, or ``interpolated`` over wavelength between two.
    """
    own = sensor == sensor_of(run)
    there = replace(run, data={**run.data, "sensor": sensor}, bands=run.bands if own else None, stage="final")
    train, val, scenes = there.parts()
    assert scenes is not None  # of the stage final
    data = EarthData(train, val, scenes, run.batch_size)
    loader = list(data.test_dataloader())
    if own:
        return {OWN: scores(task, loader)}
    model = task.model
    found = {}
    if model.method.reads_any_bands:
        task.model = transfer(model, scenes.bands, scenes.sensor)
        found[TRANSFER] = scores(task, loader)
        if task.model.auxiliary is not None:
            task.model.fit_normalization(data.train_dataloader())
            found[REFITTED] = scores(task, loader)
        task.model = model
    else:
        for how in (NEAREST, INTERPOLATED):
            matrix = stand_ins(model.bands, scenes.band_set, how)
            found[how] = scores(
                task, [b | {"image": torch.einsum("oc,bchw->bohw", matrix, b["image"])} for b in loader]
            )
    return found


def stand_ins(wanted: BandSet, given: BandSet, how: str) -> Tensor:
    """(wanted, given) what makes the bands that a model wants of those that a sensor has, by centre wavelength."""
    have, want = (np.log(bands.wavelengths) for bands in (given, wanted))
    if how == NEAREST:
        return torch.eye(len(have))[np.abs(want[:, None] - have).argmin(1)]
    order = np.argsort(have)
    each = np.eye(len(have))[order]
    return torch.from_numpy(np.stack([np.interp(want, have[order], one) for one in each.T], axis=1)).float()


def scores(task: Segmentation, batches: Iterable[dict]) -> dict[str, float]:
    """The task's metrics on batches, and the metamer test of them."""
    logits, truth = logits_and_truth(task, batches)
    metrics = task.metrics["test"].clone()
    metrics.update(task.predicted(logits), truth)
    return {name: float(value) for name, value in metrics.compute().items()} | pair_accuracy(logits, truth)
