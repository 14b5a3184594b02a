"""Runs of a second or less: a tiny ViT on a EuroSAT of a few tiny images."""

from pathlib import Path

import numpy as np
import pandas as pd
from archives import write_text, write_tif

import peftlib as pl
from peftlib.experiments import config as runs
from peftlib.experiments.config import Run
from peftlib.experiments.grid import execute
from peftlib.experiments.run import Place

CLASSES = ("Forest", "River", "SeaLake")
IMAGES = Path("ds/images/remote_sensing/otherDatasets/sentinel_2/tif")
HERE = Place(accelerator="cpu", threads=1)
MEASURED = ["step_ms", "peak_mb", "wall_s", "device", "versions", "commit"]  # what may differ between equal runs


def write_eurosat(root: Path, train: int = 9, val: int = 6, test: int = 6, size: int = 8) -> Path:
    """A EuroSAT of three classes, which near infrared tells apart, in torchgeo's layout under ``root``."""
    draw, number = np.random.default_rng(0), 0
    for split, count in (("train", train), ("val", val), ("test", test)):
        names = []
        for i in range(count):
            number += 1
            image = draw.integers(500, 1500, (13, size, size)).astype(np.uint16)
            image[7] += 1000 * (i % 3)
            names.append(f"{CLASSES[i % 3]}_{number}")
            write_tif(image_path(root, names[-1]), image)
        for name in (f"eurosat-{split}.txt", f"eurosat-spatial-{split}.txt"):
            write_text(root / "eurosat" / name, *(f"{name}.jpg" for name in names))
    return root


def image_path(root: Path, name: str) -> Path:
    """Where the image ``Forest_1`` and the like lie."""
    return root / "eurosat" / IMAGES / name.split("_")[0] / f"{name}.tif"


def toy(**fields) -> Run:
    """A run of two epochs."""
    plain = dict(dataset="eurosat", method=pl.LoRA(rank=2, new_bands="mean"), backbone="test_vit", weights="random")
    return Run(**(plain | dict(image_size=32, batch_size=4, epochs=2) | fields))


def do(runs, folder: Path, **options) -> pd.DataFrame:
    """The rows of runs, in this process and on one thread unless said otherwise."""
    return execute(runs, folder=folder, **(dict(place=HERE, progress=False) | options))


def forget() -> None:
    """Drop what this process remembers of data sets and weights, as a new process would."""
    for remembered in (runs._files, runs._opened, runs._file_hash):
        remembered.cache_clear()


def values(table: pd.DataFrame) -> pd.DataFrame:
    """What equal runs must agree on, in one order."""
    return table.drop(columns=MEASURED).sort_values(["key", "split", "metric"]).reset_index(drop=True)


def assert_same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Both tables hold the same runs with the same numbers, to the bit."""
    pd.testing.assert_frame_equal(values(one), values(other), check_exact=True, check_dtype=False)
