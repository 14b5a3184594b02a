"""Your own images: a folder of GeoTIFFs, with labels or masks. ``docs/own_data.md`` shows each kind."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from peftlib.data.dataset import EarthDataset, opened
from peftlib.data.places import RASTERS, matching, place
from peftlib.data.reading import Reading, per_band, read_window
from peftlib.sensors.bands import band_set


class Item(NamedTuple):
    """The image, number of its class or its mask, what ``{id}`` stands for, and where the window begins."""

    path: Path
    truth: Any
    name: str
    top: int = 0
    left: int = 0


class ImageFolder(EarthDataset):
    """Images of your own as a data set. What it cannot read it refuses, by file and with the cure.

    Args:
        folder: with the images, in it or in folders below.
        bands: names of what is read, in the order of the files (``sensor="custom"``: name -> nm).
        classes: names; labels and masks hold them, or their numbers from 0.
        labels: a CSV with columns ``file`` and ``label``; or ``"folders"``, whose names are classes.
        masks: a folder of images (.tif, .png) of the same names; or their pattern in it, ``"masks/m_{id}.png"``.
        sensor: as in ``pl.adapt``.
        scale, offset: reflectance is (value + offset) / scale, each one number or one a band. ``scale="standardised"``
            and ``"divided by mean"`` undo that, with the sensor's usual mean and deviation.
        fill: stored value of pixels without data, beside what files declare; adapt with ``nodata="zero"`` for them.
        unknown: value of mask pixels whose class is not known.
        split: only this part, or these: of a table's column ``split``, or else a folder in both.
        gsd: ground sampling distance in metres.
        channels: which of a file's channels are read, numbers from 0; None is all.
        images: pattern of the images inside ``folder``.
        mask_values: stored number -> name of its class, None where that is not known.
        tile: side in pixels of the squares that masked images are cut into, or of patches. Over the border images are
            mirrored and masks unknown; tiles without a known pixel are left out.
        splits: a CSV with columns ``file`` and ``split``; files are named by path, or by what ``{id}`` stands for.
        odd: ``"warn"`` names images with values above reflectance and clips them, ``"error"`` refuses them.
        rgb_white: as in ``pl.adapt``.
    """

    folder = ""

    def __init__(
        self, folder: str | Path, bands: Sequence[str] | Mapping[str, float], classes: Sequence[str],
        labels: str | Path | None = None, masks: str | Path | None = None, sensor: str = "sentinel2",
        scale: float | str | Sequence[float] = 1e4, fill: float | None = None, unknown: int = -1,
        split: str | int | Sequence[str | int] | None = None, gsd: float = 10.0, *,
        offset: float | Sequence[float] = 0.0, channels: Sequence[int] | None = None, images: str = "{id}.tif",
        mask_values: Mapping[int, str | None] | None = None, tile: int | None = None,
        splits: str | Path | None = None, odd: str = "warn", rgb_white: float = 0.3,
    ):  # fmt: skip
        if (labels is None) == (masks is None):
            raise ValueError(f"it needs labels= (a CSV) or masks= (a folder), got labels={labels}, masks={masks}")
        if tile is not None and tile < 1:
            raise ValueError(f"tile={tile}; give at least 1")
        self.name, self.classes, self.gsd, self.rgb_white, self.looked = "folder", tuple(classes), gsd, rgb_white, False
        self.task, self.truth = "segmentation" if labels is None else "classification", str(labels or masks)
        self.tile, self.table, self.pattern = tile, splits, images
        named = dict(enumerate(self.classes)) if mask_values is None else mask_values
        self.stored = {v: self.ignore_index if n is None else self.number(n, "mask_values") for v, n in named.items()}
        if lacking := [name for number, name in enumerate(self.classes) if number not in self.stored.values()]:
            raise ValueError(f"mask_values={mask_values} has nothing for the classes {lacking}")
        self.stored[unknown] = self.ignore_index
        one = band_set(bands, sensor)
        self.sensor, self.all_bands = sensor, one.names
        self.wavelengths = dict(zip(one, one.wavelengths, strict=True))
        if isinstance(scale, str):
            mean, std = one.statistics()
            undo = {"standardised": (1 / std, mean / std), "divided by mean": (1 / mean, 0 * mean)}
            if scale not in undo:
                raise ValueError(f"scale={scale!r}; give numbers, or one of {[*undo]}")
            scale, offset = (values.tolist() for values in undo[scale])
        numbers = list(range(len(one)) if channels is None else channels)
        if len(numbers) != len(one) or len(set(numbers)) < len(one) or min(numbers) < 0:
            raise ValueError(f"channels={channels}; give another number, from 0, for each of {one.names}")
        self.how = Reading(
            list(one), numbers, per_band("scale", scale, one),
            per_band("offset", offset, one), [] if fill is None else [fill], 0 if channels else len(one), odd,
        )  # fmt: skip
        self.parts = None if split is None else [str(s) for s in ([split] if isinstance(split, str | int) else split)]
        self.splits = ("" if self.parts is None else ", ".join(self.parts),)
        super().__init__(self.splits[0], folder, nodata="error" if fill is None else "nan")
        self.how = replace(self.how, size=self.size)
        self.reading = asdict(self.how)  # what ``fit_normalization`` hands to the model

    def missing(self, what: str | Path) -> str:
        return f"no .tif with a label or a mask in {self.root}" + (f" for split {self.split!r}" if self.split else "")

    def number(self, name: object, where: object) -> int:
        """Of a class, by its name or its number."""
        names = [*self.classes, *map(str, range(len(self.classes)))]
        if str(name) not in names:
            raise ValueError(f"{where}: label {name!r}; classes are {self.classes}")
        return names.index(str(name)) % len(self.classes)

    def __getitem__(self, index: int) -> dict:
        if not self.looked:  # at first, at some of the images: all their values pass for reflectance, and show nothing
            some = [super(ImageFolder, self).__getitem__(i)["image"] for i in range(0, len(self), len(self) // 8 + 1)]
            rgb = torch.cat([image[list(self.band_set.rgb)].flatten() for image in some])
            if (rgb >= self.rgb_white).sum() > 0.75 * rgb.isfinite().sum():
                raise ValueError(
                    f"{self.root}: most of RGB is above rgb_white={self.rgb_white}, the ViT would see white. Digital "
                    "numbers? Landsat: scale=1/2.75e-5, offset=-0.2/2.75e-5. Snow? Raise rgb_white, in adapt too"
                )
            self.looked = True
        return super().__getitem__(index)

    def read(self, item: Item) -> dict:
        box = (item.top, item.left, *self.size)
        where = place(item.path, box)
        meta = {"source": str(item.path)} | ({} if where is None else {"location": where})
        truth = {"label": item.truth} if self.task == "classification" else {"mask": self.mask(item)}
        return {"image": self.how.image(item.path, box, self.band_set), "meta": meta} | truth

    def mask(self, item: Item) -> Tensor:
        """(h, w) class numbers of a sample."""
        mask = torch.from_numpy(read_window(item.truth, [0], (item.top, item.left, *self.size), outside=nan)[0])
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
        by_csv = self.truth.endswith(".csv")
        table = self.table or (self.truth if by_csv and self.parts else None)
        below = "" if table or by_csv else self.split
        images = matching(self.root / below, self.pattern)
        if by_csv:
            rows = self.column(self.truth, "label", images)
            truth: dict = {name: self.number(label, f"{self.truth}, {name}") for name, label in rows.items()}
        elif self.task == "classification":
            truth = {name: self.number(path.parent.name, path) for name, path in images.items()}
        else:
            truth = self.masks_of(images, below)
        if lacking := [self.pattern.replace("{id}", name) for name in truth if name not in images]:
            raise FileNotFoundError(
                f"{self.truth} names {lacking[:3]}, which {self.root} lacks ({len(lacking)} in all)"
            )
        items = [Item(images[name], truth[name], name) for name in sorted(truth)]
        if table and self.parts:
            part = self.column(table, "split", images)
            if lacking := [item.name for item in items if item.name not in part]:
                raise ValueError(f"{table} has no row for {lacking[:3]} ({len(lacking)} images in all)")
            if lost := set(self.parts) - set(part.values()):
                raise ValueError(f"{table} has nothing for split {min(lost)!r}; there are {sorted(set(part.values()))}")
            items = [item for item in items if part[item.name] in self.parts]
        self.size = self.look_at(items)
        return [tile for item in items for tile in self.tiles(item)]

    def column(self, path: str | Path, name: str, images: Mapping[str, Path]) -> dict[str, str]:
        """Of a CSV with columns ``file`` and this one: what ``{id}`` stands for -> value."""
        import pandas

        table = pandas.read_csv(path, dtype=str)
        if not {"file", name} <= set(table.columns):
            raise ValueError(f"{path} has columns {list(table.columns)}, need 'file' and {name!r}")
        ids = {Path(os.path.relpath(image, self.root)).with_suffix("").as_posix(): id for id, image in images.items()}
        files = table["file"].str.replace(r"\.(tiff?|png)$", "", regex=True)
        return {ids.get(file, file): value for file, value in zip(files, table[name], strict=True)}

    def masks_of(self, images: Mapping[str, Path], below: str) -> dict[str, Any]:
        masks, found = Path(self.truth), {}
        masks = (masks if masks.exists() else self.root / masks) / below
        for name, path in images.items():
            tried = [masks / f"{stem}{suffix}" for stem in (name, path.stem) for suffix in RASTERS]
            tried = [self.root / self.truth.replace("{id}", name)] if "{id}" in self.truth else [masks, *tried]
            found[name] = next((one for one in tried if one.is_file()), None)
        taken = set(found.values())  # masks that lie below the images are no images
        found = {name: mask for name, mask in found.items() if images[name] not in taken}
        if without := [images[name].name for name, mask in found.items() if mask is None]:
            raise FileNotFoundError(
                f"no mask in {masks} for {without[:3]} ({len(without)} images in all); say how they are named: "
                "images='images/s2_{id}.tif', masks='masks/m_{id}.png'"
            )
        return found

    def look_at(self, items: list[Item]) -> tuple[int, int]:
        """Headers of all files; (H, W) of a sample."""
        self.sizes: dict[Path, tuple[int, int]] = {}
        for item in items:
            for path in self.files(item):
                with opened(path) as file:
                    count, size, nodata = file.count, file.shape, file.nodata
                if path == item.path:
                    self.how.check(path, count)
                    self.nodata = self.nodata if nodata is None else "nan"
                elif count != 1:
                    raise ValueError(f"{path}: a mask has one band, this has {count}")
                if size != self.sizes.setdefault(item.path, size):
                    raise ValueError(f"{path}: {size} pixels, and {item.path} has {self.sizes[item.path]}")
        found = sorted(set(self.sizes.values()))
        if self.tile is None and len(found) > 1:
            raise ValueError(
                f"{self.root}: images of {found[0]} to {found[-1]} pixels; cut them into tiles: tile=64, say"
            )
        return found[0] if self.tile is None and found else (self.tile or 0, self.tile or 0)

    def tiles(self, item: Item) -> list[Item]:
        if self.tile is None:
            return [item]
        (height, width), side = self.sizes[item.path], self.tile
        if self.task == "classification":
            return [item._replace(top=(height - side) // 2, left=(width - side) // 2)]
        corners = product(range(0, height, side), range(0, width, side))
        every = (item._replace(top=top, left=left) for top, left in corners)
        return [tile for tile in every if (self.mask(tile) != self.ignore_index).any()]


from_folder = ImageFolder
