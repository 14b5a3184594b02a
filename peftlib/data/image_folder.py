"""Your own images: a folder of GeoTIFFs, with a table of labels or a folder of masks beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from peftlib.data.dataset import EarthDataset
from peftlib.sensors.bands import band_set


class ImageFolder(EarthDataset):
    """Images of your own as a data set: every ``.tif`` of a folder that has a label or a mask.

    Args:
        folder: with the images, in it or in folders below; all of one size and of the same bands.
        bands: names of the files' bands in order (``sensor="custom"``: name -> wavelength in nm).
        classes: names; labels are these names, or their numbers from 0.
        labels: a CSV with columns ``file`` (path inside the folder), ``label`` and, if you like, ``split``.
        masks: a folder of GeoTIFFs of class numbers with the images' names and size.
        sensor: as in ``pl.adapt``.
        scale: what stored values are divided by to be reflectance: 10000 for Sentinel-2, 255 for 8-bit.
        fill: stored value of pixels without data; they become NaN (adapt with ``nodata="zero"``).
        unknown: value of mask pixels whose class is not known.
        split: only rows of the CSV with this in their column ``split``; or with masks, a folder below both.
        gsd: ground sampling distance in metres.
    """

    folder = ""

    def __init__(
        self,
        folder: str | Path,
        bands: Sequence[str] | Mapping[str, float],
        classes: Sequence[str],
        labels: str | Path | None = None,
        masks: str | Path | None = None,
        sensor: str = "sentinel2",
        scale: float = 1e4,
        fill: float | None = None,
        unknown: int = -1,
        split: str | None = None,
        gsd: float = 10.0,
    ):
        if (labels is None) == (masks is None):
            raise ValueError(f"it needs labels= (a CSV) or masks= (a folder), got labels={labels}, masks={masks}")
        self.name, self.classes, self.sensor, self.gsd, self.scale = "folder", tuple(classes), sensor, gsd, scale
        self.task = "segmentation" if labels is None else "classification"
        self.all_bands = band_set(bands, sensor).names
        self.wavelengths = bands if isinstance(bands, Mapping) else {}
        self.labels, self.masks, self.unknown, self.splits = labels, masks, unknown, (split or "",)
        self.fill = () if fill is None else (fill,)
        super().__init__(split or "", folder, nodata="error" if fill is None else "nan")

    def find(self) -> list[tuple[Path, Path]] | list[tuple[Path, int]]:
        return self._masked(Path(self.masks or "")) if self.labels is None else self._labelled(Path(self.labels))

    def class_numbers(self, mask: Tensor) -> Tensor:
        return torch.where(mask == self.unknown, self.ignore_index, mask)

    def read(self, item: tuple[Path, int | Path]) -> dict:
        return super().read(item) | ({"label": item[1]} if self.task == "classification" else {})

    def missing(self, what: str | Path) -> str:
        return f"no .tif with a label or a mask in {self.root}" + (f" for split {self.split!r}" if self.split else "")

    def _masked(self, masks: Path) -> list[tuple[Path, Path]]:
        folder, masks = self.root / self.split, masks / self.split
        items = [(path, masks / path.relative_to(folder)) for path in sorted(folder.rglob("*.tif"))]
        if without := [str(path.relative_to(folder)) for path, mask in items if not mask.is_file()]:
            raise FileNotFoundError(f"no mask in {masks} for {without[:3]} ({len(without)} images in all)")
        return items

    def _labelled(self, labels: Path) -> list[tuple[Path, int]]:
        import pandas

        table = pandas.read_csv(labels, dtype=str)
        needed = {"file", "label"} | ({"split"} if self.split else set())
        if not needed <= set(table.columns):
            raise ValueError(f"{labels} has columns {list(table.columns)}, need {sorted(needed)}")
        if self.split:
            table = table[table["split"] == self.split]
        numbers = {name: i for i, name in enumerate(self.classes)} | {str(i): i for i in range(len(self.classes))}
        items = []
        for file, label in zip(table["file"], table["label"], strict=True):
            path = self.root / str(file)
            if label not in numbers:
                raise ValueError(f"{labels}: label {label!r} of {file}; classes are {self.classes}")
            if not path.is_file():
                raise FileNotFoundError(f"{labels} names {file}, which is not in {self.root}")
            items.append((path, numbers[label]))
        return items


from_folder = ImageFolder
