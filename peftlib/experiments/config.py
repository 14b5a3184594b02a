"""A run: everything that decides a result, and nothing else. Its key is the name under which the result is kept."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from peftlib.data import DATASETS, load
from peftlib.data.subsets import Concat, Subset, Tiles, cache_if_small, every_nth, files_of, folds
from peftlib.files import data_dir
from peftlib.methods import Method
from peftlib.methods.base import LATER, facts_of
from peftlib.model.metadata import SIZES

VERSION = 1  # part of each key: raised when a change of the package changes results
STAGES = ("search", "final")
PRECISIONS = ("32-true", "bf16-mixed")
NAMED_WEIGHTS = ("default", "hub", "random")
DECODERS = ("linear", "unet", "upernet")
HELD_MEGABYTES = 1000  # data sets up to this size are read once a process, not once an epoch


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training and its evaluation; each field changes the result.

    Attributes:
        dataset: one of ``peftlib.data.DATASETS``.
        method: its config; ``new_bands`` is the input treatment.
        data: further options of the data set, such as ``{"task": "multilabel"}``.
        bands: names; None is all that the data set has.
        folds: 0 takes the data set's own parts. k pools its train and test parts and cuts them in k: part ``seed % k``
            is tested, the others train, the val part validates. Where there is no val part, the test part validates
            and is not pooled.
        tile: side in pixels of tiles to cut images into; 0 takes them whole. Tiles without known pixels are left out.
        train_tiles: tiles of a training image to keep, those with most known pixels; 0 is all.
        train_images, val_images: at most so many images (or tiles) train and validate, spread evenly; 0 is all.
        backbone, weights, res: as for ``load_backbone``; random weights are drawn from ``init``.
        image_size: side in pixels to which images are resized.
        decoder: ``"linear"``, ``"unet"``, ``"upernet"``; for segmentation, else of no effect.
        lr, head_lr, weight_decay, schedule, warmup, augment: see ``peftlib.training.learning.Task``.
        batch_size: images that make a batch, over all devices.
        accumulate, epochs, patience, precision: see ``peftlib.training.fit.fit``.
        stage: ``"search"`` never scores what is tested, nor opens it where it is a part of its own; ``"final"`` scores
            it once, at the end.
        seed: order of images, augmentation, dropout, and the fold that is tested.
        init: start of adapter and head; None is ``seed``.
        metadata: of ``"location"``, ``"date"``, ``"gsd"``: what the model reads beside the image, see ``adapt``.
        unseen: options of the data set, beside ``data``, under which its test part is scored too, as split "unseen":
            other regions, such as ``{"continents": ["africa"]}``; ``{"split": "bolivia"}`` names another part.
        moved: measure too how far training moved the model on RGB, as the split "rgb" (``peftlib.experiments.evaluations``).
    """

    dataset: str
    method: Method
    data: Mapping[str, Any] = field(default_factory=dict)
    bands: tuple[str, ...] | None = None
    folds: int = 0
    tile: int = 0
    train_tiles: int = 0
    train_images: int = 0
    val_images: int = 0
    backbone: str = "dinov2_small"
    weights: str = "default"
    res: float | None = None
    image_size: int = 56
    decoder: str = "linear"
    lr: float = 1e-3
    head_lr: float = 1e-3
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup: float = 0.05
    augment: bool = True
    batch_size: int = 32
    accumulate: int = 1
    epochs: int = 10
    patience: int | None = None
    precision: str = "32-true"
    stage: str = "final"
    seed: int = 0
    init: int | None = None
    metadata: tuple[str, ...] = field(default=(), metadata=LATER)
    unseen: Mapping[str, object] = field(default_factory=dict, metadata=LATER)
    moved: bool = field(default=False, metadata=LATER)

    def __post_init__(self):
        for name, choices in (
            ("dataset", tuple(DATASETS)),
            ("decoder", DECODERS),
            ("stage", STAGES),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"Run({name}={getattr(self, name)!r}); choose from {', '.join(choices)}")
        if not isinstance(self.method, Method):
            raise ValueError(f"Run(method={self.method!r}); give a config, such as pl.LoRA(rank=8)")
        least = dict.fromkeys(("folds", "tile", "train_tiles", "train_images", "val_images", "seed"), 0)
        for name, value in (least | dict.fromkeys(("image_size", "batch_size", "epochs"), 1)).items():
            if getattr(self, name) < value:
                raise ValueError(f"Run({name}={getattr(self, name)!r}); it must be at least {value}")
        if self.train_tiles and not self.tile:
            raise ValueError(f"Run(train_tiles={self.train_tiles}) needs tile=, the side of a tile")
        for name, refused in (("data", {"split", "root", "bands"}), ("unseen", {"root", "bands"})):
            if refused & set(options := getattr(self, name)):
                raise ValueError(
                    f"Run({name}={dict(options)}); split and bands are fields of a run, root is PEFTLIB_DATA"
                )
        if self.bands is not None:
            object.__setattr__(self, "bands", tuple(self.bands))
        object.__setattr__(self, "metadata", tuple(self.metadata))
        if not set(self.metadata) <= set(SIZES):
            raise ValueError(f"Run(metadata={self.metadata}); choose from {', '.join(SIZES)}")

    @property
    def start(self) -> int:
        """The seed of adapter and head."""
        return self.seed if self.init is None else self.init

    def facts(self) -> dict:
        """The fields as plain values for JSON, the method as its name and options."""
        plain = facts_of(self) | {"data": dict(self.data), "init": self.start}
        if self.metadata:
            plain["metadata"] = list(self.metadata)
        if self.unseen:
            plain["unseen"] = dict(self.unseen)
        plain["bands"] = None if self.bands is None else list(self.bands)
        if self.weights not in NAMED_WEIGHTS:
            plain["weights"] = "file"
        return plain | {"method": self.method.name, "options": self.method.options()}

    @property
    def key(self) -> str:
        """16 hex digits of a hash over all fields and what lies behind them: the files of the data, bytes of weights.

        Where data and weights lie, and where and on what the run is done, is not part of it.

        Raises:
            FileNotFoundError: data or weights that are not there.
        """
        behind = {"version": VERSION, "files": _files(self.dataset, _frozen(self.data), data_dir())}
        if self.unseen:
            behind["unseen files"] = _files(self.dataset, _frozen(self._unseen()[1]), data_dir())
        if self.weights not in NAMED_WEIGHTS:
            path = Path(self.weights).absolute()
            behind["weights"] = _file_hash(path, path.stat().st_mtime_ns)
        text = json.dumps(self.facts() | behind, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def parts(self) -> tuple[Dataset, Dataset, Dataset | None]:
        """What trains, validates and tests; a search has nothing to test."""
        where, final = (_frozen(self.data), data_dir(), self.bands), self.stage == "final"
        train, val = (_opened(self.dataset, split, *where) for split in ("train", "val"))
        test = _opened(self.dataset, "test", *where) if final or self.folds else None
        if self.folds:
            pool, val = (train, test) if val is None else (Concat([train, test]), val)
            parts = folds(pool, self.folds)
            tested = parts.pop(self.seed % self.folds)
            train, test = Subset(pool, sorted(i for part in parts for i in part)), Subset(pool, tested)
        if val is None:
            raise ValueError(f"{self.dataset} has no val part here; choose folds=3, say")
        if self.tile:
            train = Tiles(train, self.tile, self.train_tiles)
            val, test = Tiles(val, self.tile), Tiles(test, self.tile) if final else None
        return every_nth(train, self.train_images), every_nth(val, self.val_images), test if final else None

    def unseen_part(self) -> Dataset | None:
        """What is scored beside the test part; None in a search, or where nothing is asked for.

        Raises:
            ValueError: images that train in another fold.
        """
        if not self.unseen or self.stage != "final":
            return None
        split, options = self._unseen()
        part = _opened(self.dataset, split, _frozen(options), data_dir(), self.bands)
        if self.folds:  # which train on what else would be tested
            own = [
                _opened(self.dataset, name, _frozen(self.data), data_dir(), self.bands) for name in ("train", "test")
            ]
            pooled = [item for one in own if one is not None for item in files_of(one)]
            if part is not None and (shared := sum(item in pooled for item in files_of(part))):
                raise ValueError(f"Run(unseen={dict(self.unseen)}): {shared} of its images are in the folds")
        return Tiles(part, self.tile) if self.tile else part

    def _unseen(self) -> tuple[str, dict]:
        """Its part of the data set, and the options."""
        options = {**self.data, **self.unseen}
        return options.pop("split", "test"), options


def _frozen(data: Mapping) -> str:
    return json.dumps(dict(data), sort_keys=True)


@lru_cache(maxsize=8)
def _opened(dataset: str, split: str, data: str, root: Path, bands: tuple[str, ...] | None) -> Dataset | None:
    """A part of a data set, in memory if it is small; None where there is no such part."""
    try:
        part = load(dataset, split=split, bands=bands, **json.loads(data))
    except FileNotFoundError:
        if split == "val":
            return None
        raise
    return cache_if_small(part, HELD_MEGABYTES)


@lru_cache(maxsize=64)
def _files(dataset: str, data: str, root: Path) -> str:
    """A hash over names and contents of a data set's files, in all its parts."""
    found = {}
    for split in DATASETS[dataset].splits:
        try:
            found[split] = files_of(load(dataset, split=split, **json.loads(data)))
        except FileNotFoundError:
            if split == "train":
                raise
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


@lru_cache(maxsize=8)
def _file_hash(path: Path, _stamp: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
