"""Data sets seen through another: some images, tiles, a copy in memory, folds; and what their contents hash to."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from joblib import Parallel, delayed
from torch.utils import data as torch_data
from torch.utils.data import Dataset

from peftlib.data.dataset import EarthDataset
from peftlib.files import atomic_path, fingerprint


class View(Dataset):
    """A data set seen through another; what it does not have itself (bands, classes, ...) it has from there."""

    dataset: Dataset

    def __getattr__(self, name: str):
        if name.startswith("__") or name in ("dataset", "datasets"):  # not there yet while a copy is being made
            raise AttributeError(name)
        return getattr(self.dataset, name)


class Subset(torch_data.Subset, View):
    """Images of given numbers, in that order."""


class Concat(torch_data.ConcatDataset, View):
    """The images of data sets of one kind, one after the other; facts are those of the first."""

    @property
    def dataset(self) -> Dataset:
        return self.datasets[0]


class InMemory(View):
    """All images in memory, read once. Treat samples as read-only: they are shared."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.samples = [dataset[i] for i in range(len(dataset))]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        return self.samples[index]


class Mapped(View):
    """All images read once, by several threads, into a file that this process and others map into memory.

    ``file`` holds images and masks, a ``.pt`` beside it labels and ``meta``. Its name must stand for the contents: a
    file that is there is taken as it is. Treat samples as read-only.
    """

    def __init__(self, dataset: Dataset, file: Path):
        self.dataset, index = dataset, file.with_suffix(".pt")
        if not index.is_file():
            with atomic_path(file) as temporary, open(temporary, "wb") as out:
                samples = [self._written(sample, out) for sample in self._read()]
            with atomic_path(index) as temporary:  # last: what has one is whole
                torch.save(samples, temporary)
        self.samples = torch.load(index, weights_only=True)
        self.values = torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)

    def _read(self) -> Iterator[dict]:
        parallel = Parallel(-1, prefer="threads", return_as="generator")
        return parallel(delayed(self.dataset.__getitem__)(i) for i in range(len(self.dataset)))

    def _written(self, sample: dict, out: BinaryIO) -> dict:
        kept = {name: value for name, value in sample.items() if name not in ("bands", "sensor")}
        for name in {"image", "mask"} & set(kept):
            kept[name] = out.tell(), sample[name].dtype, sample[name].shape
            out.write(sample[name].contiguous().numpy().data)
            out.write(bytes(-out.tell() % 8))  # where any type may begin
        return kept

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        sample = self.samples[index] | {"bands": self.dataset.bands, "sensor": self.dataset.sensor}
        for name in {"image", "mask"} & set(sample):
            start, dtype, shape = sample[name]
            sample[name] = self.values[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)
        return sample


class Tiles(View):
    """Square tiles of ``side`` pixels of images with masks, without those that have no known pixel, or cross a border.

    ``per_image`` keeps only so many tiles of an image, those with most known pixels (ties: the first); 0 keeps all.
    ValueError: no masks, or images smaller than a tile.
    """

    def __init__(self, dataset: Dataset, side: int, per_image: int = 0):
        self.dataset, self.side = dataset, side
        self.corners: list[tuple[int, int, int]] = []  # image, top, left
        for number in range(len(dataset)):
            sample = dataset[number]
            if "mask" not in sample:
                raise ValueError(f"tiles of {getattr(dataset, 'name', 'this data set')}: its images have no masks")
            height, width = sample["mask"].shape
            if side < 1 or height < side or width < side:
                raise ValueError(f"tiles of {side} px of an image of {height} x {width}")
            known = (sample["mask"] != dataset.ignore_index).unfold(0, side, side).unfold(1, side, side).sum((2, 3))
            best = known.flatten().argsort(descending=True, stable=True)[: per_image or None]
            places = [divmod(i, known.shape[1]) for i in sorted(best.tolist())]
            self.corners += [(number, y * side, x * side) for y, x in places if known[y, x]]

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, index: int) -> dict:
        number, y, x = self.corners[index]
        sample = self.dataset[number]
        window = (..., slice(y, y + self.side), slice(x, x + self.side))
        return sample | {"image": sample["image"][window], "mask": sample["mask"][window]}


def folds(dataset: Dataset, number: int, seed: int = 0) -> list[list[int]]:
    """Image numbers in parts of nearly the same size, drawn by a seed; of each label as many in each part.

    Images that share the entry ``dataset.fold_by`` of ``meta``, if it has one, stay together. ValueError: fewer than 2
    folds, or fewer images (or groups) than folds.
    """
    count, entry = len(dataset), getattr(dataset, "fold_by", None)
    if not 2 <= number <= count:
        raise ValueError(f"{number} folds of {count} images; choose 2 or more, and no more than images")
    draw = np.random.default_rng(seed)
    if entry is None:
        order = draw.permutation(count)
        if getattr(dataset, "task", None) == "classification":
            labels = np.array([int(dataset[i]["label"]) for i in range(count)])
            order = order[np.argsort(labels[order], kind="stable")]
        return [sorted(order[i::number].tolist()) for i in range(number)]
    return group_folds([dataset[i]["meta"][entry] for i in range(count)], number, draw, f"values of {entry!r}")


def group_folds(groups: Sequence, number: int, draw: np.random.Generator, what: str) -> list[list[int]]:
    """Positions in parts of nearly the same size; what is of one group is in one part. ``what`` is for the error."""
    names, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < number:
        raise ValueError(f"{number} folds of images with {len(names)} {what}; choose no more folds")
    parts: list[list[int]] = [[] for _ in range(number)]
    order = draw.permutation(len(names))
    for group in order[np.argsort(-sizes[order], kind="stable")]:  # the largest first, into the smallest part by then
        min(parts, key=len).extend(np.flatnonzero(place == group).tolist())
    return [sorted(part) for part in parts]


def every_nth(dataset: Dataset, most: int) -> Dataset:
    """At most so many of the images, evenly spread over their order; 0 keeps all."""
    if not 0 < most < len(dataset):
        return dataset
    return Subset(dataset, [i * len(dataset) // most for i in range(most)])


def data_fingerprint(data: Dataset) -> str:
    """sha256 of what a data set holds: the bytes of every sample's image, label and mask, as training will see them.

    So a corrected label, another scale, fill value, crop or list of images is another data set, and a moved folder is
    the same one. Data that draw anew at each reading have no such hash: theirs is of their length alone.
    """
    facts = (len(data), list(getattr(data, "bands", ())), list(getattr(data, "classes", ())))
    seen = hashlib.sha256(repr(facts).encode())
    digests = [_digest(data[i]) for i in range(len(data))]
    if digests and digests[0] == _digest(data[0]):
        seen.update("".join(digests).encode())
    return seen.hexdigest()


def _digest(sample: Mapping) -> str:
    return fingerprint({name: torch.as_tensor(sample[name]) for name in ("image", "label", "mask") if name in sample})


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
