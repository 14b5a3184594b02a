"""Other views of a data set: some of its images, tiles of them, a copy in memory, folds. Samples keep their form."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from peftlib.data.dataset import EarthDataset


class View(Dataset):
    """A data set seen through another; what it does not have itself (bands, classes, ...) it has from there."""

    def __init__(self, data: Dataset):
        self.data = data

    def __getattr__(self, name: str):
        if name.startswith("__") or name == "data":  # not there yet while a copy is being made
            raise AttributeError(name)
        return getattr(self.data, name)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict:
        return self.data[index]


class Part(View):
    """Images of given numbers, in that order."""

    def __init__(self, data: Dataset, numbers: Sequence[int]):
        super().__init__(data)
        self.numbers = [int(i) for i in numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict:
        return self.data[self.numbers[index]]


class Joined(View):
    """The images of two data sets of one kind, one after the other."""

    def __init__(self, first: Dataset, second: Dataset):
        super().__init__(first)
        self.second = second

    def __len__(self) -> int:
        return len(self.data) + len(self.second)

    def __getitem__(self, index: int) -> dict:
        return self.data[index] if index < len(self.data) else self.second[index - len(self.data)]


class Held(View):
    """All images in memory, read once. Treat samples as read-only: they are shared."""

    def __init__(self, data: Dataset):
        super().__init__(data)
        self.samples = list(data)

    def __getitem__(self, index: int) -> dict:
        return self.samples[index]


class Tiles(View):
    """Square tiles of images with masks; those without one known pixel are left out.

    Args:
        data: a segmentation data set.
        side: of a tile in pixels; what is left over at the lower and right border is not seen.
        per_image: keep only so many tiles of an image, those with most known pixels (ties: the first); 0 keeps all.

    Raises:
        ValueError: images without masks, or smaller than a tile.
    """

    def __init__(self, data: Dataset, side: int, per_image: int = 0):
        super().__init__(data)
        self.side = side
        self.places: list[tuple[int, int, int]] = []  # image, top, left
        for number in range(len(data)):
            sample = data[number]
            if "mask" not in sample:
                raise ValueError(f"tiles of {getattr(data, 'name', 'this data set')}: its images have no masks")
            height, width = sample["mask"].shape
            if side < 1 or height < side or width < side:
                raise ValueError(f"tiles of {side} px of an image of {height} x {width}")
            known = sample["mask"] != data.ignore_index
            corners = [(y, x) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)]
            counts = {(y, x): int(known[y : y + side, x : x + side].sum()) for y, x in corners}
            best = sorted((c for c in corners if counts[c]), key=counts.__getitem__, reverse=True)
            self.places += [(number, y, x) for y, x in (sorted(best[:per_image]) if per_image else sorted(best))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict:
        number, y, x = self.places[index]
        sample = self.data[number]
        window = (..., slice(y, y + self.side), slice(x, x + self.side))
        return sample | {"image": sample["image"][window], "mask": sample["mask"][window]}


def folds(data: Dataset, number: int) -> list[list[int]]:
    """Image numbers in parts of nearly the same size, drawn once and for all; of each label as many in each part.

    Raises:
        ValueError: fewer than two folds, or fewer images than folds.
    """
    if not 2 <= number <= len(data):
        raise ValueError(f"{number} folds of {len(data)} images; choose 2 or more, and no more than images")
    order = np.random.default_rng(0).permutation(len(data))
    if getattr(data, "task", None) == "classification":
        labels = np.array([int(data[i]["label"]) for i in range(len(data))])
        order = order[np.argsort(labels[order], kind="stable")]
    return [sorted(order[i::number].tolist()) for i in range(number)]


def spread(data: Dataset, most: int) -> Dataset:
    """At most so many of the images, evenly spread over their order; 0 keeps all."""
    return Part(data, [i * len(data) // most for i in range(most)]) if 0 < most < len(data) else data


def held_if_small(data: Dataset, megabytes: float) -> Dataset:
    """A copy in memory where the images take no more than so much, else the data set itself."""
    first = data[0]["image"]
    small = first.numel() * torch.finfo(first.dtype).bits / 8 * len(data) <= megabytes * 2**20
    return Held(data) if small else data


def data_fingerprint(data: Dataset) -> str:
    """sha256 of what a data set holds: the bytes of every sample's image, label and mask, as training will see them.

    So a corrected label, another scale, fill value, crop or list of images is another data set, and a moved folder is
    the same one. Data that draw anew at each reading have no such hash: theirs is of their length alone.
    """
    facts = (len(data), list(getattr(data, "bands", ())), list(getattr(data, "classes", ())))
    seen = hashlib.sha256(repr(facts).encode())
    digests = [_digest(data[i]) for i in range(len(data))]
    if digests and digests[0] == _digest(data[0]):
        seen.update(b"".join(digests))
    return seen.hexdigest()


def _digest(sample: Mapping) -> bytes:
    seen = hashlib.sha256()
    for name in ("image", "label", "mask"):
        if name in sample:
            value = torch.as_tensor(sample[name])
            seen.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            seen.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return seen.digest()


def files_of(data: EarthDataset) -> list:
    """What a data set consists of, wherever it lies: each item, and its files by name with a hash of their contents."""

    def plain(item):
        if isinstance(item, tuple | list):
            return [plain(part) for part in item]
        return "" if isinstance(item, Path) else repr(item)

    def named(path: Path) -> list[str]:
        inside = path.relative_to(data.root) if path.is_relative_to(data.root) else Path(path.name)
        return [inside.as_posix(), contents_hash(path) if path.is_file() else ""]

    listed = ((plain(item), [named(path) for path in data.files(item)]) for item in data.items)
    return [[item, files] if files else item for item, files in listed]


def contents_hash(path: Path) -> str:
    """sha256 of a file's bytes, read once a process unless the file changes."""
    stat = path.stat()
    return _hash_of_file(path, stat.st_size, stat.st_mtime_ns)


@cache
def _hash_of_file(path: Path, _size: int, _stamp: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
