"""Your own images: a folder of GeoTIFFs, or one scene, with labels or masks. ``docs/own_data.md`` shows each kind."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from peftlib.data.dataset import EarthDataset, opened
from peftlib.data.places import SHAPES, column, masks_of, matching, near_groups, place, shapes_on
from peftlib.data.reading import Reading, days_of, per_band, read_window
from peftlib.data.subsets import group_folds
from peftlib.deflect.time_series import series_bands, stack
from peftlib.sensors.bands import BandSet, band_set

SUMMARY = 1000  # pixels of each sample that percentiles are made of


class Item(NamedTuple):
    """Files (one, or one a date), class number, mask file or drawn mask, the part, and where the window begins."""

    paths: tuple[Path, ...]
    truth: Any
    part: str = ""
    top: int = 0
    left: int = 0


class ImageFolder(EarthDataset):
    """Images of your own as a data set. What it cannot read it refuses, by file and with the cure.

    Args:
        folder: with the images, in it or in folders below; or one GeoTIFF, a scene.
        bands, sensor, rgb_white: as in ``pl.adapt``, bands in the order of the files.
        classes: names; labels and masks hold them, or their numbers from 0.
        labels: a CSV with columns ``file`` and ``label``; ``"folders"``, whose names are classes; or points or polygons
            on a scene (GeoPackage, GeoJSON, ...), each the middle of a patch.
        masks: a folder of images (.tif, .png, .h5) of the same names; a pattern inside ``folder``,
            ``"masks/m_{id}.png"``; or points or polygons on a scene, which leave the rest unknown.
        scale, offset: reflectance is (value + offset) / scale, each one number or one a band. ``scale="standardised"``
            and ``"divided by mean"`` undo that, with the sensor's usual mean and deviation.
        fill: stored value of pixels without data, beside what files declare; adapt with ``nodata="zero"`` for them.
        unknown: value of mask pixels whose class is not known.
        split: only this part, or these: of a table's column ``split``, of ``folds``, or else a folder in both.
        gsd: ground sampling distance in metres.
        channels: which of a file's channels are read, numbers from 0; None is all.
        extra: names of channels behind the bands that are no reflectance (slope, radar), for EMB and Inflated.
        images: pattern of the images inside ``folder``.
        mask_values: stored number -> name of its class, None where that is not known.
        tile: side in pixels of the squares that masked images are cut into, or of patches. Over the border images are
            mirrored and masks unknown; tiles without a known pixel are left out.
        splits: a CSV with columns ``file`` and ``split``; files are named by path, or by what ``{id}`` stands for.
        folds: parts 0, 1, ... to make; images nearer than ``apart`` metres, through others too, are in the same one.
        odd: ``"warn"`` names images with values above reflectance and clips them, ``"error"`` refuses them.
        dates: of a series, YYYY-MM-DD -> pattern of its images; rgb_date: number of the date that RGB shows, or
            ``"best"``, the clearest.
    """

    folder = ""

    def __init__(
        self, folder: str | Path, bands: Sequence[str] | Mapping[str, float], classes: Sequence[str],
        labels: str | Path | None = None, masks: str | Path | None = None, sensor: str = "sentinel2",
        scale: float | str | Sequence[float] = 1e4, fill: float | None = None, unknown: int = -1,
        split: str | int | Sequence[str | int] | None = None, gsd: float = 10.0, *,
        offset: float | Sequence[float] = 0.0, channels: Sequence[int] | None = None, extra: Sequence[str] = (),
        images: str = "{id}.tif", mask_values: Mapping[int, str | None] | None = None, tile: int | None = None,
        splits: str | Path | None = None, folds: int = 0, apart: float = 0.0, odd: str = "warn",
        dates: Mapping[str, str] | None = None, rgb_date: int | str = -1, rgb_white: float = 0.3,
    ):  # fmt: skip
        if (labels is None) == (masks is None):
            raise ValueError(f"it needs labels= (a CSV) or masks= (a folder), got labels={labels}, masks={masks}")
        if (tile is not None and tile < 1) or (folds and (folds < 2 or split is None or splits)):
            raise ValueError(f"tile={tile}, folds={folds}, split={split}: tile from 1, folds from 2 and with split=")
        if dates and rgb_date not in ("best", *range(-len(dates), len(dates))):
            raise ValueError(f"rgb_date={rgb_date!r}; give 'best', or the number of one of {[*dates]}, from 0")
        self.name, self.classes, self.gsd, self.rgb_white, self.looked = "folder", tuple(classes), gsd, rgb_white, False
        self.task, self.truth = "segmentation" if labels is None else "classification", str(labels or masks)
        self.tile, self.table, self.folds, self.apart = tile, splits, folds, apart
        self.patterns, self.days = list((dates or {}).values()) or [images], days_of(list(dates or ()))
        named = dict(enumerate(self.classes)) if mask_values is None else mask_values
        self.stored = {v: self.ignore_index if n is None else self.number(n, "mask_values") for v, n in named.items()}
        if lacking := [name for number, name in enumerate(self.classes) if number not in self.stored.values()]:
            raise ValueError(f"mask_values={mask_values} has nothing for the classes {lacking}")
        self.stored[unknown] = self.ignore_index
        one = band_set(bands, sensor)
        if extra:
            one = band_set(dict(zip(one, one.wavelengths, strict=True)) | dict.fromkeys(extra, math.nan), "custom")
        self.one, self.stacked = one, series_bands(one, len(dates), day="since") if dates else one
        self.all_bands = self.stacked.names
        if isinstance(scale, str):
            mean, std = one.statistics()
            undo = {"standardised": (1 / std, mean / std), "divided by mean": (1 / mean.where(mean > 0, 1), 0 * mean)}
            if scale not in undo:
                raise ValueError(f"scale={scale!r}; give numbers, or one of {[*undo]}")
            scale, offset = (values.tolist() for values in undo[scale])
        numbers = list(range(len(one)) if channels is None else channels)
        if len(numbers) != len(one) or len(set(numbers)) < len(one) or min(numbers) < 0:
            raise ValueError(f"channels={channels}; give another number, from 0, for each of {one.names}")
        self.how = Reading(
            list(one), numbers, per_band("scale", scale, one),
            per_band("offset", offset, one), [] if fill is None else [fill], 0 if channels else len(one), odd,
            dates=[*(dates or {})], rgb_date=rgb_date,
        )  # fmt: skip
        self.parts = [str(part) for part in ([split] if isinstance(split, str | int) else split or [])]
        self.splits = (", ".join(self.parts),)
        super().__init__(self.splits[0], folder, nodata="error" if fill is None else "nan")
        self.how = replace(self.how, size=self.size)
        self.reading = asdict(self.how)  # what ``fit_normalization`` hands to the model

    def resolve_bands(self) -> BandSet:
        self.bands, self.sensor = self.stacked, self.stacked.sensor  # names alone say no wavelengths, and no dates
        return self.stacked

    def missing(self, what: str | Path) -> str:
        return f"no .tif with a label or a mask in {self.root}" + (f" for split {self.split!r}" if self.split else "")

    def number(self, name: object, where: object) -> int:
        """Of a class, by its name or its number."""
        names = [*self.classes, *map(str, range(len(self.classes)))]
        if str(name) not in names:
            raise ValueError(f"{where}: label {name!r}; classes are {self.classes}")
        return names.index(str(name)) % len(self.classes)

    def files(self, item: Item) -> list[Path]:
        return [*item.paths, *([item.truth] if isinstance(item.truth, Path) else [])]

    def __getitem__(self, index: int) -> dict:
        if not self.looked:
            some = [super(ImageFolder, self).__getitem__(i)["image"] for i in range(0, len(self), len(self) // 8 + 1)]
            if white := self.white(torch.stack(some, dim=1)):
                raise ValueError(white)
            self.looked = True
        return super().__getitem__(index)

    def white(self, images: Tensor) -> str:
        """What is wrong where values (C, ...) pass for reflectance and RGB would show nothing; else nothing."""
        rgb = images[list(self.band_set.rgb)]
        if (rgb >= self.rgb_white).sum() <= 0.75 * rgb.isfinite().sum():
            return ""
        return (
            f"{self.root}: most of RGB is above rgb_white={self.rgb_white}, the ViT would see white. Digital numbers? "
            "Landsat: scale=1/2.75e-5, offset=-0.2/2.75e-5. Snow? Raise rgb_white, in adapt too"
        )

    def summary(self) -> str:
        """What one reading of all samples finds: sizes, shares of classes, values of bands, what is refused and why."""
        import pandas

        counts: Counter = Counter()
        pixels, refused, sides = [torch.empty(len(self.all_bands), 0)], set(), np.array([*self.sizes.values()])
        for i in range(len(self)):
            try:
                sample = super().__getitem__(i)
            except (ValueError, FileNotFoundError) as error:
                refused.add(str(error))
                continue
            pixels.append(sample["image"].flatten(1)[:, :: math.prod(self.size) // SUMMARY + 1])
            counts.update(np.ravel(sample["mask" if "mask" in sample else "label"]).tolist())
        values, names = torch.cat(pixels, dim=1), dict(enumerate(self.classes)) | {self.ignore_index: "unknown"}
        frame = pandas.DataFrame(values.T.numpy(), columns=list(self.all_bands))
        table = frame.describe(percentiles=[0.02, 0.5, 0.98]).T.drop(columns="count")
        return "\n".join([
            f"{len(self.sizes)} images with sides of {sides.min()} to {sides.max()} pixels",
            f"{len(pixels) - 1} of {len(self)} samples of {self.size} pixels can be read",
            ", ".join(f"{name} {counts[number] / max(1, counts.total()):.2%}" for number, name in names.items()),
            table.assign(**{"no data": frame.isna().mean()}).round(4).to_string(),
            *(f"refused: {text}" for text in sorted({*refused, self.white(values)} - {""})[:20]),
        ])  # fmt: skip

    def read(self, item: Item) -> dict:
        box = (item.top, item.left, *self.size)
        where = place(item.paths[0], box)
        meta = {"source": str(item.paths[0])} | ({} if where is None else {"location": where})
        truth = {"label": item.truth} if self.task == "classification" else {"mask": self.mask(item)}
        image = images = torch.stack([self.how.image(path, box, self.one) for path in item.paths])
        if self.days:
            image = stack(images, self.days, self.one, day="since", rgb=self.how.rgb_date)
        return {"image": image.squeeze(0), "meta": meta} | truth

    def mask(self, item: Item) -> Tensor:
        """(h, w) class numbers of a sample."""
        box = (item.top, item.left, *self.size)
        if not isinstance(item.truth, Path):
            return torch.from_numpy(item.truth[box[0] : box[0] + box[2], box[1] : box[1] + box[3]]).long()
        mask = torch.from_numpy(read_window(item.truth, [0], box, outside=math.nan)[0])
        if odd := sorted(set(mask[mask.isfinite()].unique().tolist()) - set(self.stored)):
            raise ValueError(
                f"{item.truth}: mask holds {[int(v) for v in odd]}, and {[*self.stored]} are known: name them in "
                "mask_values=, None for an unknown class, or give unknown="
            )
        numbers = torch.full(mask.shape, self.ignore_index)
        for value, number in self.stored.items():
            numbers[mask == value] = number
        return numbers

    # --- what there is ---

    def find(self) -> list[Item]:
        kind = Path(self.truth).suffix.lower()
        table = self.table or (self.truth if kind == ".csv" and self.parts and not self.folds else None)
        below = "" if table or self.folds else self.split
        items = self.on_scene() if kind in SHAPES else self.in_folder(self.root / below, kind, below)
        if table and self.parts:
            part = column(Path(table), "split", self.root, {item.part: item.paths[0] for item in items})
            if lacking := [item.part for item in items if item.part not in part]:
                raise ValueError(f"{table} has no row for {lacking[:3]} ({len(lacking)} images in all)")
            items = self.chosen([item._replace(part=part[item.part]) for item in items])
        self.size = self.look_at(items)
        if self.tile and not (kind in SHAPES and self.task == "classification"):
            items = [tile for item in items for tile in self.tiles(item, self.tile)]
        return self.chosen(self.folded(items)) if self.folds else items

    def in_folder(self, folder: Path, kind: str, below: str) -> list[Item]:
        truth: dict[str, Any]
        dates = [matching(folder, pattern) for pattern in self.patterns]
        if kind == ".csv":
            rows = column(Path(self.truth), "label", self.root, dates[0])
            truth = {name: self.number(label, f"{self.truth}, {name}") for name, label in rows.items()}
        elif self.task == "classification":
            truth = {name: self.number(path.parent.name, path) for name, path in dates[0].items()}
        else:
            truth = masks_of(dates[0], self.truth, self.root, below)
        if lacking := [name for name in truth if not all(name in date for date in dates)]:
            lost = [p for p, date in zip(self.patterns, dates, strict=True) if lacking[0] not in date]
            names = " and ".join(lost).replace("{id}", lacking[0])
            raise FileNotFoundError(f"{folder} lacks {names} ({len(lacking)} images in all)")
        return [Item(tuple(date[name] for date in dates), truth[name], name) for name in sorted(truth)]

    def on_scene(self) -> list[Item]:
        from rasterio.features import rasterize

        path, side, points = Path(self.truth), self.tile or 0, self.task == "classification"
        if not self.root.is_file() or (points and not side) or (self.parts and not self.folds):
            raise ValueError(f"{path}: folder= is the scene's GeoTIFF, labels= needs tile=, and split= needs folds=")
        shapes, (height, width) = shapes_on(self.root, path)
        numbers = [self.number(name, path) for name in shapes["label"]]
        if points:
            middles = shapes.representative_point()
            corners = zip(numbers, middles.y.astype(int) - side // 2, middles.x.astype(int) - side // 2, strict=True)
            return [Item((self.root,), number, "", *corner) for number, *corner in corners]
        pairs, size = zip(shapes.geometry, numbers, strict=True), (height + side, width + side)
        return [Item((self.root,), rasterize(pairs, size, fill=self.ignore_index, dtype="int16"))]

    def chosen(self, items: list[Item]) -> list[Item]:
        """Those of the parts that are read."""
        there = sorted({item.part for item in items})
        if lost := [part for part in self.parts if part not in there]:
            raise ValueError(f"{self.root}: nothing for split {lost[0]!r}; there are {there[:9]}")
        return [item for item in items if item.part in self.parts]

    def look_at(self, items: list[Item]) -> tuple[int, ...]:
        """Headers of all files; (H, W) of a sample."""
        self.sizes: dict[tuple[Path, ...], tuple[int, int]] = {}
        for item in {item.paths: item for item in items}.values():
            grid = self.how.grid(item.paths)
            self.nodata = self.nodata if grid["nodata"] is None else "nan"
            size = self.sizes[item.paths] = grid["height"], grid["width"]
            for path in set(self.files(item)) - set(item.paths):
                with opened(path) as file:
                    count, there = file.count, file.shape
                if count != 1 or there != size:
                    raise ValueError(f"{path}: {count} bands of {there} pixels; a mask has 1 of {size}")
        found = sorted(set(self.sizes.values()))
        if self.tile is None and len(found) > 1:
            raise ValueError(f"{self.root}: images of {found[0]} to {found[-1]} pixels; cut them: tile=64, say")
        return found[0] if self.tile is None and found else (self.tile or 0,) * 2

    def tiles(self, item: Item, side: int) -> list[Item]:
        height, width = self.sizes[item.paths]
        if self.task == "classification":
            return [item._replace(top=(height - side) // 2, left=(width - side) // 2)]
        corners = product(range(0, height, side), range(0, width, side))
        every = (item._replace(top=top, left=left) for top, left in corners)
        return [tile for tile in every if (self.mask(tile) != self.ignore_index).any()]

    def folded(self, items: list[Item]) -> list[Item]:
        """Items in parts "0", "1", ... of images, or of the windows of one scene."""
        whole = {paths: (0, 0, *size) for paths, size in self.sizes.items()} if len(self.sizes) > 1 else {}
        windows = [(i.paths[0], whole.get(i.paths, (i.top, i.left, *self.size))) for i in items]
        groups = near_groups(windows, self.apart) if self.apart else list(map(str, windows))
        parts = enumerate(group_folds(groups, self.folds, np.random.default_rng(0), f"groups (apart={self.apart} m)"))
        return [items[i]._replace(part=str(number)) for number, part in parts for i in part]


from_folder = ImageFolder
