"""Burned areas of California, 2020 to 2025: 42 fires, Sentinel-2 at 20 m, 97 to 376 px, mostly 225.

* Source: github.com/Runan-Duan/Wildfire_Detection (no licence stated), perimeters of CAL FIRE; Copernicus terms for
  the images.
* Files: ``images/<fire>_<day of the alarm>.tif``, a median over 30 days after the fire, ``masks/`` with the same names,
  and ``index.csv`` with name, height, width and fold of each. Images before a fire, ``pre/``, are not read.
* Splits: the table's five folds, which keep fires apart that are nearer than 10 km. Fold 4 tests, 3 validates.
* Values: surface reflectance x 1e4, 0 no data. Masks: 1 inside the perimeter, 0 outside, 255 unknown (here -1). A
  perimeter is no map of what burnt: it holds unburnt islands.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from peftlib.data.dataset import EarthDataset, date_in

FOLDS = {"train": (0, 1, 2), "val": (3,), "test": (4,)}
COLUMNS = ["name", "height", "width", "fold"]
Item = tuple[Path, Path, int, int, int]  # image, mask, fold, top, left


class CalFire(EarthDataset):
    """Burned areas of California, in squares of ``tile`` pixels, filled up with no data at the border."""

    name = "calfire"
    folder = "calfire_s2_burn_42"
    classes = ("not burnt", "burnt")
    primary_metric = "iou_burnt"
    fold_by = "fold"
    all_bands = ("B02", "B03", "B04", "B08", "B12")
    gsd = 20.0
    scale = 1e4
    fill = (0.0,)
    nodata = "nan"
    tile = 75  # pixels
    source = "https://github.com/Runan-Duan/Wildfire_Detection"

    def find(self) -> list[Item]:
        import pandas

        path = self.there("index.csv")
        try:
            table = pandas.read_csv(path)[COLUMNS].astype(dict.fromkeys(COLUMNS[1:], int))
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path} is not a table with {COLUMNS} ({error})") from error
        return [
            (self.root / "images" / f"{name}.tif", self.root / "masks" / f"{name}.tif", fold, top, left)
            for name, height, width, fold in table.itertuples(index=False)
            if fold in FOLDS[self.split]
            for top in range(0, height, self.tile)
            for left in range(0, width, self.tile)
        ]

    def class_numbers(self, mask: Tensor) -> Tensor:
        return torch.where(mask == 255, self.ignore_index, mask)

    def about(self, item: Item) -> dict:
        return {"fold": item[2], "date": date_in(item[0], r"_(\d{8})\.tif", "%Y%m%d")}

    def read(self, item: Item) -> dict:
        *_, top, left = item
        sample = super().read(item)
        height, width = sample["image"].shape[1:]
        if top >= height or left >= width:
            raise ValueError(f"{item[0]}: image of {height, width}, less than index.csv says")
        window = (..., slice(top, top + self.tile), slice(left, left + self.tile))
        border = (0, max(0, left + self.tile - width), 0, max(0, top + self.tile - height))
        sample["image"] = F.pad(sample["image"][window], border, value=torch.nan)
        sample["mask"] = F.pad(sample["mask"][window], border, value=self.ignore_index)
        return sample
