"""Runs of a second or less: a tiny ViT on a EuroSAT of a few tiny images."""

from pathlib import Path

import numpy as np
import pandas as pd
from archives import write_text, write_tif

import peftlib as pl
from peftlib.data import subsets
from peftlib.experiments import config
from peftlib.experiments.config import Experiment
from peftlib.experiments.grid import execute
from peftlib.experiments.results import read_row, tables
from peftlib.experiments.run import Resources

CLASSES = ("Forest", "River", "SeaLake")
IMAGES = Path("ds/images/remote_sensing/otherDatasets/sentinel_2/tif")
HERE = Resources(accelerator="cpu")
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
        write_text(root / "eurosat" / f"eurosat-{split}.txt", *(f"{name}.jpg" for name in names))
    return root


def image_path(root: Path, name: str) -> Path:
    """Where the image ``Forest_1`` and the like lie."""
    return root / "eurosat" / IMAGES / name.split("_")[0] / f"{name}.tif"


def toy(**fields) -> Experiment:
    """An experiment of four steps."""
    plain = dict(dataset="eurosat", method=pl.LoRA(rank=2), backbone="test_vit", weights="random")
    return Experiment(**(plain | dict(image_size=32, batch_size=4, steps=4) | fields))


def do(experiments, folder: Path, **options) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of experiments, in this process and on one thread unless said otherwise."""
    return execute(experiments, folder=folder, **(dict(resources=HERE, progress=False) | options))


def gather(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of the rows in a folder."""
    return tables(row for row in map(read_row, folder.glob("[!.]*.json")) if row is not None)


def forget() -> None:
    """Drop what this process remembers of data sets and weights, as a new process would."""
    for remembered in (config._files, config._opened, subsets._hash_of_file):
        remembered.cache_clear()


def assert_same(one: tuple, other: tuple) -> None:
    """Both hold the same runs with the same numbers, to the bit."""
    for left, right, order in zip(one, other, (["key", "role"], ["key", "split", "metric"]), strict=True):
        left, right = (t.drop(columns=[c for c in MEASURED if c in t]).sort_values(order) for t in (left, right))
        left, right = (t.reset_index(drop=True) for t in (left, right))
        pd.testing.assert_frame_equal(left, right, check_exact=True, check_dtype=False)
