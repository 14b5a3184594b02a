"""What a grid of runs will cost, before it starts."""

import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch
from timm.models.vision_transformer import VisionTransformer

from peftlib.backbones.loading import load_backbone
from peftlib.data import load
from peftlib.experiments.config import Run
from peftlib.experiments.grid import rows_dir
from peftlib.experiments.results import read_row
from peftlib.methods import Full, Method
from peftlib.methods.base import IGNORE
from peftlib.model.adapted_vit import adapt, without_weights
from peftlib.model.costs import flops
from peftlib.sensors.bands import BandSet


def plan(
    runs: Iterable[Run], workers: int = 1, folder: str | Path | None = None, known: pd.DataFrame | None = None
) -> pd.DataFrame:
    """A line a data set, backbone and method: how many runs, how many of them are finished, minutes for the others.

    Minutes are an estimate: arithmetic of training and validation, counted, at the rate at which full fine-tuning of
    the backbone runs here and now on one worker.

    Args:
        runs: which; one that comes twice counts once.
        workers: that share them, with the machine's cores shared out.
        folder: of the rows; None is ``peftlib.experiments.grid.rows_dir()``.
        known: rows done before, as for ``peftlib.experiments.grid.execute``.
    """
    folder = rows_dir() if folder is None else Path(folder)
    before = set() if known is None else set(known.loc[known["status"] == "done", "key"])
    lines = []
    for key, run in {run.key: run for run in runs}.items():
        row = read_row(folder / f"{key}.json")
        finished = key in before or (row is not None and row["status"] == "done")
        line = {"dataset": run.dataset, "backbone": run.backbone, "method": run.method.name, "runs": 1}
        lines.append(line | {"finished": int(finished), "minutes": 0.0 if finished else seconds(run) / 60 / workers})
    table = pd.DataFrame(lines, columns=["dataset", "backbone", "method", "runs", "finished", "minutes"])
    return table.groupby(["dataset", "backbone", "method"], sort=False).sum().reset_index()


def seconds(run: Run) -> float:
    """What a run will take here, about."""
    train, val = sizes(run)
    data = load(run.dataset, split="train", bands=run.bands, **run.data)
    model = (run.backbone, run.weights, run.res, run.image_size)
    forward, step = _flops(model, run.method, data.band_set)
    return run.epochs * (train * step + val * forward) / _rate(model)


def sizes(run: Run) -> tuple[int, int]:
    """How many images (or tiles, then at most) a run trains and validates on, without reading them."""
    count = {}
    for split in ("train", "val", "test"):
        try:
            count[split] = len(load(run.dataset, split=split, **run.data))
        except FileNotFoundError:
            count[split] = 0
    train, val = count["train"], count["val"]
    if run.folds:
        train = train + (count["test"] if val else 0)
        train, val = train - train // run.folds, val or count["test"]
    if run.train_tiles:
        train *= run.train_tiles
    return min(train, run.train_images or train), min(val, run.val_images or val)


@lru_cache(maxsize=2)
def _backbone(model: tuple) -> VisionTransformer:
    name, weights, res, image_size = model
    return load_backbone(name, weights, image_size, res)


@lru_cache(maxsize=256)
def _flops(model: tuple, method: Method, bands: BandSet) -> tuple[int, int]:
    names = bands.names if bands.sensor != "custom" else dict(zip(bands.names, bands.wavelengths, strict=True))
    return flops(adapt(without_weights(_backbone(model)), method, names, bands.sensor, model[-1]))


@lru_cache(maxsize=8)
def _rate(model: tuple) -> float:
    """Floating-point operations a second of full fine-tuning on red, green and blue, on the device there is."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bands = ("B04", "B03", "B02")
    with torch.random.fork_rng(devices=[]):
        full = adapt(_backbone(model), Full(new_bands=IGNORE), bands).to(device)
        x = torch.rand(16, len(bands), *full.image_size, device=device)
    seconds = []
    for _ in range(4):
        clock = time.perf_counter()
        full(x).square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - clock)
    return len(x) * flops(full)[1] / min(seconds)
