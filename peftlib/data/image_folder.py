"""Your own images: a folder of GeoTIFFs, with a table of labels or a folder of masks beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from peftlib.data.dataset import EarthDataset, read_tif
from peftlib.data.files import read_mask
from peftlib.sensors.bands import band_set


class FolderDataset(EarthDataset):
    """Made by ``from_folder``."""

    name = "folder"
    scale: float
    fill: float | None
    unknown: int

    def read(self, item: tuple[Path, Any]) -> dict:
        path, truth = item
        values, meta = read_tif(path)
        image = values.float()
        if self.fill is not None:
            image[image == self.fill] = torch.nan
        sample = {"image": image / self.scale, "meta": meta | {"source": str(path)}}
        if self.task == "classification":
            return sample | {"label": truth}
        mask = read_mask(truth)
        return sample | {"mask": torch.where(mask == self.unknown, self.ignore_index, mask)}


def from_folder(
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
) -> FolderDataset:
    """Images of your own as a data set: every ``.tif`` of a folder that has a label or a mask.

        data = from_folder("chips", ("B02", "B03", "B04", "B08"), classes=("forest", "field"), labels="labels.csv")

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

    Raises:
        ValueError: neither or both of labels and masks, a column or class that is not there.
        FileNotFoundError: no such folder, file or mask.
    """
    if (labels is None) == (masks is None):
        raise ValueError(f"from_folder needs labels= (a CSV) or masks= (a folder), got labels={labels}, masks={masks}")
    data = FolderDataset.__new__(FolderDataset)
    data.root, data.gsd = Path(folder), gsd
    data.split = split  # type: ignore[assignment]  # here a part need not be named
    data.classes, data.sensor, data.bands = (
        tuple(classes),
        sensor,
        bands if isinstance(bands, Mapping) else tuple(bands),
    )
    data.band_set = band_set(bands, sensor)
    data.all_bands = data.band_set.names
    data.scale, data.fill, data.unknown = scale, fill, unknown
    data.nodata = "error" if fill is None else "nan"
    data.task = "segmentation" if labels is None else "classification"
    if not data.root.is_dir():
        raise FileNotFoundError(f"no folder {data.root}")
    if labels is not None:
        data.items = _labelled(data, Path(labels))
    elif masks is not None:
        data.items = _masked(data.root, Path(masks), split)
    if not data.items:
        raise FileNotFoundError(
            f"no .tif with a label or a mask in {data.root}" + (f" for split {split!r}" if split else "")
        )
    return data


def _masked(folder: Path, masks: Path, split: str | None) -> list[tuple[Path, Path]]:
    folder, masks = (folder, masks) if split is None else (folder / split, masks / split)
    images = sorted(folder.rglob("*.tif")) if masks != folder else []
    items = [(path, masks / path.relative_to(folder)) for path in images if masks not in path.parents]
    without = [str(path.relative_to(folder)) for path, mask in items if not mask.is_file()]
    if without:
        raise FileNotFoundError(f"no mask in {masks} for {without[:3]} ({len(without)} images in all)")
    return items


def _labelled(data: FolderDataset, labels: Path) -> list[tuple[Path, int]]:
    import pandas

    if not labels.is_file():
        raise FileNotFoundError(f"no table of labels at {labels}")
    table = pandas.read_csv(labels, dtype=str)
    needed = {"file", "label"} | ({"split"} if data.split else set())
    if not needed <= set(table.columns):
        raise ValueError(f"{labels} has columns {list(table.columns)}, need {sorted(needed)}")
    if data.split:
        table = table[table["split"] == data.split]
    numbers = {name: i for i, name in enumerate(data.classes)} | {str(i): i for i in range(len(data.classes))}
    items = []
    for file, label in zip(table["file"], table["label"], strict=True):
        path = data.root / str(file)
        if label not in numbers:
            raise ValueError(f"{labels}: label {label!r} of {file}; classes are {data.classes}")
        if not path.resolve().is_relative_to(data.root.resolve()):
            raise ValueError(f"{labels}: {file} leads out of {data.root}")
        if not path.is_file():
            raise FileNotFoundError(f"{labels} names {file}, which is not in {data.root}")
        items.append((path, numbers[label]))
    return items
