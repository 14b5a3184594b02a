"""An experiment: everything that decides a result, and nothing else. Its key names the files of the result."""

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from torch.utils.data import Dataset

import peftlib.data as data_package
from peftlib.data import DATASETS, load
from peftlib.data.subsets import Concat, InMemory, Mapped, Subset, Tiles, contents_hash, every_nth, files_of, folds
from peftlib.files import data_dir, runs_dir
from peftlib.methods.base import Input, Method, input_from, method_from
from peftlib.model.precision import BF16_FROZEN
from peftlib.sensors.metadata import SIZES
from peftlib.training.base import SCHEDULES
from peftlib.training.decoders import DECODERS

VERSION = 2  # part of each key: raised when a change of the package changes results
SEARCH = "search"
PRECISIONS = ("32-true", BF16_FROZEN, "bf16-mixed")
NAMED_WEIGHTS = ("default", "random")
LEAST = dict.fromkeys(("folds", "fold", "repeat", "tile", "train_tiles", "train_images", "val_images", "seed"), 0)
LEAST |= dict.fromkeys(("image_size", "batch_size", "accumulate", "steps"), 1)
HELD_MEGABYTES = 200  # of a data set's part that each process keeps in memory; larger ones lie in ``runs/images``


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One training and its evaluation; each field but ``role`` changes the result.

    Attributes:
        dataset: one of ``peftlib.data.DATASETS``; data: its further options, such as ``{"view": "best"}``.
        method: how the blocks adapt; input: how the bands come in, None is the method's default.
        bands: names; None is all that the data set has.
        folds: 0 takes the data set's own parts. k pools its train and test parts and cuts them in k
            (``peftlib.data.subsets.folds``): ``fold`` is the part that tests, ``repeat`` the seed of the cut.
        val_share: share of the training images that are cut off to validate (the data set's val part, if there is one,
            joins the pool of folds); 0 validates on the data set's own val part.
        tile: side in pixels of tiles to cut images into, those without known pixels left out; 0 takes images whole.
        train_tiles: tiles of a training image to keep, those with most known pixels; 0 is all.
        train_images, val_images: at most so many images (or tiles) train and validate, spread evenly; 0 is all.
        backbone, weights, res: as for ``load_backbone``; random weights are drawn from ``init``.
        image_size: side in pixels to which images are resized.
        decoder: ``"linear"``, ``"unet"``, ``"upernet"``; for segmentation, else of no effect.
        input_lr, lr, head_lr, weight_decay, schedule, warmup, augment: see ``peftlib.training.base.Task``.
        batch_size: images that make a batch, over all devices; steps, accumulate: see ``fit``.
        precision: ``"32-true"``, ``"bf16-frozen"`` (see ``adapt``) or ``"bf16-mixed"`` (see ``fit``).
        seed: of the order of images, augmentation and dropout; init: of adapter and head, None is ``seed``.
        metadata: of ``"location"``, ``"date"``, ``"gsd"``: what the model reads beside the image, see ``adapt``.
        unseen: options of the data set, beside ``data``, under which its test part is scored too, as split "unseen":
            other regions, such as ``{"continents": ["africa"]}``; ``{"split": "train"}`` names another part.
        rgb_drift: whether to measure how far training moved the model on RGB, as split "rgb".
        role: what it is for: "search", "final", "ablation", "sensitivity", "start", "preliminary", or another word. Not
            part of the key, so one run may serve several roles; but a "search" never scores what is tested.
    """

    dataset: str
    method: Method
    input: Input = None  # type: ignore[assignment]  # made in __post_init__
    data: Mapping[str, Any] = field(default_factory=dict)
    bands: tuple[str, ...] | None = None
    folds: int = 0
    fold: int = 0
    repeat: int = 0
    val_share: float = 0.0
    tile: int = 0
    train_tiles: int = 0
    train_images: int = 0
    val_images: int = 0
    backbone: str = "dinov2_small"
    weights: str = "default"
    res: float | None = None
    image_size: int = 56
    decoder: str = "linear"
    input_lr: float = 1e-3
    lr: float = 1e-3
    head_lr: float = 1e-3
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup: float = 0.05
    augment: bool = True
    batch_size: int = 16
    accumulate: int = 1
    steps: int = 500
    precision: str = "32-true"
    seed: int = 0
    init: int | None = None
    metadata: tuple[str, ...] = ()
    unseen: Mapping[str, Any] = field(default_factory=dict)
    rgb_drift: bool = False
    role: str = "final"

    def __post_init__(self):
        def check(right: bool, name: str, need: str) -> None:
            if not right:
                raise ValueError(f"Experiment({name}={getattr(self, name)!r}); {need}")

        choices = {"dataset": DATASETS, "decoder": DECODERS, "precision": PRECISIONS, "schedule": SCHEDULES}
        for name, known in choices.items():
            check(getattr(self, name) in known, name, f"choose from {', '.join(known)}")
        check(isinstance(self.method, Method), "method", "give a config, such as pl.LoRA(rank=8)")
        check(self.input is None or isinstance(self.input, Input), "input", "give a config, such as pl.EMB()")
        check(isinstance(self.role, str) and bool(self.role), "role", "say what it is for, such as 'final'")
        for name, least in LEAST.items():
            check(getattr(self, name) >= least, name, f"it must be at least {least}")
        check(self.folds != 1, "folds", "choose 0, or 2 or more")
        check(self.fold < max(self.folds, 1), "fold", f"there are {self.folds} folds, counted from 0")
        check(0 <= self.val_share <= 0.5, "val_share", "choose 0 to 0.5")
        check(not self.train_tiles or self.tile > 0, "train_tiles", "it needs tile=, the side of a tile")
        for name, refused in (("data", {"split", "root", "bands"}), ("unseen", {"root", "bands"})):
            need = "split and bands are fields of an experiment, root is PEFTLIB_DATA"
            check(not refused & set(getattr(self, name)), name, need)
        check(set(self.metadata) <= set(SIZES), "metadata", f"choose from {', '.join(SIZES)}")
        settled = {"input": self.input or self.method.default_input(), "metadata": tuple(self.metadata)}
        settled |= {"bands": self.bands and tuple(self.bands), "init": self.seed if self.init is None else self.init}
        for name, value in settled.items():
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict:
        """The fields as plain values for JSON, input and method as name and options. Inverse: ``from_dict``."""
        plain = {name: getattr(self, name) for name in asdict(self)}
        plain |= {"method": self.method.name, "options": self.method.options()}
        plain |= {"input": self.input.name, "input_options": self.input.options()}
        return json.loads(json.dumps(plain))

    @classmethod
    def from_dict(cls, plain: Mapping) -> Self:
        fields = dict(plain)
        fields["method"] = method_from(fields["method"], fields.pop("options"))
        fields["input"] = input_from(fields["input"], fields.pop("input_options"))
        return cls(**fields)

    @property
    def scores_test(self) -> bool:
        return self.role != SEARCH

    @property
    def key(self) -> str:
        """16 hex digits of a hash over all fields but ``role`` and what lies behind them: contents of data and weights.

        FileNotFoundError where data or weights are not there.
        """
        facts = self.to_dict() | {"version": VERSION, "files": _files(self.dataset, _text(self.data), data_dir())}
        facts["role"] = self.scores_test
        if self.unseen:
            facts["unseen files"] = _files(self.dataset, _text(self._unseen()[1]), data_dir())
        if self.weights not in NAMED_WEIGHTS:
            facts["weights"] = contents_hash(Path(self.weights).absolute())
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def parts(self) -> tuple[Dataset, Dataset, Dataset | None]:
        """What trains, validates and tests; a search has nothing to test. ValueError where nothing validates."""
        train, val = self._open("train"), self._open("val")
        test = self._open("test") if self.scores_test or self.folds else None
        if self.folds:
            pool = Concat([train, test, val] if self.val_share and val is not None else [train, test])
            numbers = folds(pool, self.folds, self.repeat)
            test = Subset(pool, numbers.pop(self.fold))
            train = Subset(pool, sorted(itertools.chain(*numbers)))
        if self.val_share:
            whole = {sample["meta"][train.fold_by] for sample in train} if train.fold_by else range(len(train))
            first, *others = folds(train, min(round(1 / self.val_share), len(whole)), self.repeat)
            train, val = Subset(train, sorted(itertools.chain(*others))), Subset(train, first)
        if val is None:
            raise ValueError(f"{self.dataset} has no val part here; choose val_share=0.2, say")
        test = self._tiled(test) if self.scores_test else None
        train, val = self._tiled(train, self.train_tiles), self._tiled(val)
        return every_nth(train, self.train_images), every_nth(val, self.val_images), test

    def unseen_part(self) -> Dataset | None:
        """What is scored beside the test part; None in a search. ValueError for images that train in another fold."""
        if not self.unseen or not self.scores_test:
            return None
        split, options = self._unseen()
        part = self._open(split, options)
        if self.folds and part is not None:
            pooled = [item for one in map(self._open, ("train", "val", "test")) if one for item in files_of(one)]
            if shared := sum(item in pooled for item in files_of(part)):
                raise ValueError(f"Experiment(unseen={dict(self.unseen)}): {shared} of its images are in the folds")
        return self._tiled(part)

    def _unseen(self) -> tuple[str, dict]:
        """Its part of the data set, and the options."""
        options = {**self.data, **self.unseen}
        return options.pop("split", "test"), options

    def _open(self, split: str, data: Mapping | None = None) -> Any:
        return _opened(self.dataset, split, _text(self.data if data is None else data), data_dir(), self.bands)

    def _tiled(self, part: Dataset, most: int = 0) -> Dataset:
        return Tiles(part, self.tile, most) if self.tile else part


def _text(data: Mapping) -> str:
    return json.dumps(dict(data), sort_keys=True)


@lru_cache(maxsize=8)
def _opened(dataset: str, split: str, data: str, root: Path, bands: tuple[str, ...] | None) -> Dataset | None:
    """A part of a data set, read once; None where there is no such part."""
    try:
        part = load(dataset, split=split, bands=bands, **json.loads(data))
    except FileNotFoundError:
        if split == "val":
            return None
        raise
    if part[0]["image"].nbytes * len(part) <= HELD_MEGABYTES * 2**20:
        return InMemory(part)
    readers = [contents_hash(path) for path in sorted(Path(data_package.__file__).parent.rglob("*.py"))]
    name = hashlib.sha256(repr((_files(dataset, data, root), readers, split, bands)).encode()).hexdigest()[:16]
    return Mapped(part, runs_dir() / "images" / f"{dataset}_{split}_{name}.bin")


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
