"""GEO-Bench's layout: one HDF5 file a sample, lists of names in ``*_partition.json``.

A file has a data set a band, (H, W), named like ``04 - Red``, with ``_2013-05-01`` behind it where a date is known, and
one attribute ``pickle``: the text of a pickle of a dict with ``label``, ``bands_order`` and, for each band, its place
and objects of GEO-Bench's own classes. Pickles can run code: this reader makes plain values of what it needs, inert
stand-ins of GEO-Bench's, affine's and rasterio's objects, and refuses everything else. GEO-Bench itself is not needed
(its release pins versions of pandas that nothing here can live with).

``band_stats.json`` and ``label_stats.json`` lie beside and are not read.
"""

import ast
import datetime
import io
import json
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy._core import multiarray

from peftlib.data.dataset import EarthDataset

PARTS = {"train": "train", "val": "valid", "test": "test"}
DATED = re.compile(r"(.+)_(\d{4}-\d{2}-\d{2})")
ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("datetime", "date"): datetime.date,
    ("datetime", "datetime"): datetime.datetime,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    **{
        (f"numpy.{core}.multiarray", name): getattr(multiarray, name)
        for core in ("core", "_core")  # before and since numpy 2
        for name in ("scalar", "_reconstruct")
    },
}
INERT = ("geobench", "ccb", "affine", "rasterio")  # ccb: GEO-Bench's former name


class Inert:
    """What an object of a foreign class becomes: it keeps its arguments, and nothing of the class runs."""

    args: tuple

    def __new__(cls, *args, **_):
        self = super().__new__(cls)
        self.args = args
        return self

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, state):
        self.state = state


class PlainUnpickler(pickle.Unpickler):
    """Dicts, lists, numbers, text, dates and numpy arrays; no code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module.split(".")[0] in INERT:
            return Inert
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which sample attributes do not need; not run")


def read_sample(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """One file: name of the band as stored -> (H, W) values, and the attributes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, not GEO-Bench's layout, or attributes that are more than data.
    """
    import h5py

    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        check_heap(path.read_bytes())
        with h5py.File(path) as file:
            bands = {name: file[name][()] for name in file}
            pickled = ast.literal_eval(file.attrs["pickle"])
        attributes = PlainUnpickler(io.BytesIO(pickled)).load()
        attributes["label"]
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{path} is not a readable file of GEO-Bench; truncated or damaged? ({error!r})") from error
    return bands, attributes


def check_heap(file: bytes) -> None:
    """Raise ValueError where HDF5's heap of texts has free space of no size: the library would read it for ever.

    (HDF5 file format, III.E: after 16 bytes of head come objects, number 0 the free space, size in bytes 8 to 16.)
    """
    for heap in re.finditer(b"GCOL", file):
        at, size = heap.start() + 16, int.from_bytes(file[heap.start() + 8 : heap.start() + 16], "little")
        while at + 16 <= min(heap.start() + size, len(file)):
            number, size_here = (int.from_bytes(file[at + i : at + j], "little") for i, j in ((0, 2), (8, 16)))
            step = 16 + -(-size_here // 8) * 8 if number else size_here
            if step == 0:
                raise ValueError("the heap of its texts is damaged")
            at += step


class GeoBench(EarthDataset):
    """A classification data set of GEO-Bench: subclasses say what its files hold.

    Args:
        partition: ``"default"``, or a part of the training set, ``"0.10x_train"`` say.
        options: as of ``EarthDataset``.
    """

    task = "classification"
    channels: ClassVar[dict[str, str | None]]  # name in the files -> ours, None for what is left out
    scale: ClassVar[float]  # stored number -> reflectance
    source = "https://huggingface.co/datasets/recursix/geo-bench-1.0 (folder classification_v1.0)"

    def __init__(self, split: str = "train", *, partition: str = "default", **options):
        self.partition = partition
        super().__init__(split, **options)

    def find(self) -> list[Path]:
        path = self.root / f"{self.partition}_partition.json"
        if not path.is_file():
            raise FileNotFoundError(self.missing(path.name))
        try:
            names = json.loads(path.read_text())[PARTS[self.split]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} does not list the samples of {PARTS[self.split]!r} ({error!r})") from error
        return [self.root / f"{name}.hdf5" for name in names]

    def read(self, item: Path) -> dict:
        stored, attributes = read_sample(item)
        dated = {name: DATED.fullmatch(name) for name in stored}
        names = {(match[1] if match else name): name for name, match in dated.items()}
        if len(names) != len(stored) or set(names) != set(self.channels):
            odd = sorted(set(names) ^ set(self.channels)) or "one band at several dates"
            raise ValueError(f"{item}: bands {sorted(stored)}, need {list(self.channels)} once each; differing: {odd}")
        ours = {band: stored[names[name]] for name, band in self.channels.items() if band is not None}
        sizes = {array.shape for array in ours.values()}
        if len(sizes) != 1:
            raise ValueError(f"{item}: bands of different sizes {sorted(sizes)}")
        image = torch.stack([torch.from_numpy(ours[band].astype(np.float32)) for band in self.all_bands]) * self.scale
        label = attributes["label"]
        if not isinstance(label, int | np.integer):
            raise ValueError(f"{item}: label {label!r}, need a class number")
        meta = {"source": str(item)} | self.place(item, attributes.get(next(iter(stored))), sizes.pop())
        if dates := {match[2] for match in dated.values() if match}:
            meta["date"] = dates.pop()
        return {"image": image, "label": int(label), "meta": meta}

    def place(self, item: Path, band: dict | None, size: tuple[int, int]) -> dict:
        """``location`` of the centre, where the attributes of a band have one in degrees."""
        transform = (band or {}).get("transform")
        if band is None or not isinstance(transform, Inert) or band["crs"] != "EPSG:4326":
            return {}
        a, b, c, d, e, f = transform.args[:6]
        row, column = size[0] / 2, size[1] / 2
        return {"location": (d * column + e * row + f, a * column + b * row + c)}
