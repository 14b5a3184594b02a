"""Runs of a second or less: a tiny ViT on a EuroSAT of a few tiny images."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from archives import write_text, write_tif

import peftlib as pl
from peftlib import runs
from peftlib.runs import Run

ROOT = Path(__file__).parents[1]
CLASSES = ("Forest", "River", "SeaLake")
IMAGES = Path("ds/images/remote_sensing/otherDatasets/sentinel_2/tif")
MEASURED = ["step_ms", "peak_mb", "wall_s", "device", "versions", "commit"]  # what may differ between equal runs


def write_eurosat(root: Path, train: int = 9, val: int = 6, test: int = 6, size: int = 8) -> Path:
    """A EuroSAT of three classes, which near infrared tells apart, in torchgeo's layout under ``root``."""
    draw, number = np.random.default_rng(0), 0
    for split, count in (("train", train), ("val", val), ("test", test)):
        names = []
        for i in range(count):
            number += 1
            name = f"{CLASSES[i % 3]}_{number}"
            image = draw.integers(500, 1500, (13, size, size)).astype(np.uint16)
            image[7] += 1000 * (i % 3)
            write_tif(root / "eurosat" / IMAGES / CLASSES[i % 3] / f"{name}.tif", image)
            names.append(f"{name}.jpg")
        write_text(root / "eurosat" / f"eurosat-{split}.txt", *names)
    return root


def toy(**fields) -> Run:
    """A run of two epochs."""
    plain = dict(dataset="eurosat", method=pl.LoRA(rank=2, new_bands="mean"), backbone="test_vit", weights="random")
    return Run(**(plain | dict(image_size=32, batch_size=4, epochs=2) | fields))


def other_data(monkeypatch, root: Path) -> None:
    """Data lie elsewhere from here on, as for a new process."""
    monkeypatch.setenv("PEFTLIB_DATA", str(root))
    forget()


def forget() -> None:
    """What a process remembers of its data."""
    for remembered in (runs._files, runs._opened, runs._file_hash):
        remembered.cache_clear()


def values(table: pd.DataFrame) -> pd.DataFrame:
    """What equal runs must agree on, in one order."""
    return table.drop(columns=MEASURED).sort_values(["key", "split", "metric"]).reset_index(drop=True)


def same_values(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Raise AssertionError unless both tables hold the same numbers, to the bit."""
    pd.testing.assert_frame_equal(values(one), values(other), check_exact=True, check_dtype=False)
