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

from peftlib.data.dataset import EarthDataset, read_mask, read_tif

FOLDS = {"train": (0, 1, 2), "val": (3,), "test": (4,)}
COLUMNS = ["name", "height", "width", "fold"]


class CalFire(EarthDataset):
    """Burned areas of California; the module says what its files hold.

    Args:
        tile: side in pixels of the square tiles that images are cut into, filled up with no data at the border.
        options: as of ``EarthDataset``.
    """

    name = "calfire"
    folder = "calfire_s2_burn_42"
    task = "segmentation"
    classes = ("not burnt", "burnt")
    primary_metric = "iou_burnt"
    fold_by = "fold"
    sensor = "sentinel2"
    all_bands = ("B02", "B03", "B04", "B08", "B12")
    gsd = 20.0
    nodata = "nan"
    source = "https://github.com/Runan-Duan/Wildfire_Detection"
    licence = "not stated by its publisher; Copernicus Sentinel terms for the images"

    def __init__(self, split: str = "train", *, tile: int = 75, **options):
        if tile < 1:
            raise ValueError(f"tile={tile}; it must be at least 1")
        self.tile = tile
        super().__init__(split, **options)

    def find(self) -> list[tuple[Path, Path, int, int, int]]:
        import pandas

        if not (path := self.root / "index.csv").is_file():
            raise FileNotFoundError(self.missing(path.name))
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

    def read(self, item: tuple[Path, Path, int, int, int]) -> dict:
        path, mask_path, fold, top, left = item
        values, meta = read_tif(path)
        mask, size = read_mask(mask_path), tuple(values.shape[1:])
        if tuple(mask.shape) != size:
            raise ValueError(f"{path}: mask of {tuple(mask.shape)} pixels, image of {size}")
        if top >= size[0] or left >= size[1]:
            raise ValueError(f"{path}: image of {size}, less than index.csv says")
        image = torch.where(values == 0, torch.nan, values.float() / 1e4)
        mask = torch.where(mask == 255, self.ignore_index, mask)
        window = (..., slice(top, top + self.tile), slice(left, left + self.tile))
        fill = (0, max(0, left + self.tile - size[1]), 0, max(0, top + self.tile - size[0]))
        day = path.stem[-8:]
        meta |= {"source": str(path), "fold": fold, "date": f"{day[:4]}-{day[4:6]}-{day[6:]}"}
        return {
            "image": F.pad(image[window], fill, value=torch.nan),
            "mask": F.pad(mask[window], fill, value=self.ignore_index),
            "meta": meta,
        }
