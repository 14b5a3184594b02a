"""Water or not: 306 Landsat-8 tiles of 128 px at 30 m.

* Source: github.com/shahed137003/Water-Segmentation-project, folder ``data``; MIT, by its README. Of the 12 channels of
  its files the first 7 are kept: the last, how often there was water, gives the label away.
* Files: ``images/<n>.tif`` with B1 to B7, ``masks/<n>.png``, above 0 where there is water (26% of the pixels).
* Splits: none published. Here three fifths train, a fifth each validates and tests, drawn once. Places are unknown, so
  neighbours may lie in different parts: scores are those of known regions.
* Values: surface reflectance x 1e4. No pixels without data, no place, no date.
"""

from pathlib import Path

import numpy as np
from torch import Tensor

from peftlib.data.dataset import EarthDataset


class Water(EarthDataset):
    """Landsat-8 tiles with water; the module says what its files hold."""

    name = "water"
    folder = "water_landsat_306"
    classes = ("not water", "water")
    primary_metric = "iou_water"
    sensor = "landsat8"
    all_bands = ("B1", "B2", "B3", "B4", "B5", "B6", "B7")
    gsd = 30.0
    scale = 1e4
    source = "https://github.com/shahed137003/Water-Segmentation-project (folder data)"

    def find(self) -> list[tuple[Path, Path]]:
        images = sorted((self.root / "images").glob("*.tif"), key=lambda path: (len(path.name), path.name))
        draw = np.random.default_rng(0).permutation(len(images))
        part = {"train": draw[len(images) * 2 // 5 :], "val": draw[: len(images) // 5]}
        part["test"] = draw[len(images) // 5 : len(images) * 2 // 5]
        chosen = [images[i] for i in sorted(part[self.split])]
        return [(path, self.root / "masks" / f"{path.stem}.png") for path in chosen]

    def class_numbers(self, mask: Tensor) -> Tensor:
        return (mask > 0).long()
