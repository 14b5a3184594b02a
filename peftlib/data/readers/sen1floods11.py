"""Sen1Floods11, hand-labelled: water or not in floods of eleven events, 446 Sentinel-2 chips of 512 px at 10 m.

* Source: Bonafilia et al. 2020, github.com/cloudtostreet/Sen1Floods11, bucket ``gs://sen1floods11``, folder ``v1.1``.
* Files, under the root or its folder ``v1.1``: ``data/flood_events/HandLabeled/S2Hand/<event>_<id>_S2Hand.tif`` with
  the 13 bands of Sentinel-2 in their order, ``.../LabelHand/<event>_<id>_LabelHand.tif``; Sentinel-1 is not read.
* Splits: ``splits/flood_handlabeled/flood_<split>_data.csv``, 252 / 89 / 90, and 15 chips of Bolivia, an event that
  none of the others has: the test of an unseen region.
* Values: top-of-atmosphere reflectance x 1e4; a pixel that is 0 in every band has no data and becomes NaN. Masks: 0
  not water, 1 water, -1 unknown.
"""

from pathlib import Path

import torch
from torch import Tensor

from peftlib.data.dataset import EarthDataset
from peftlib.sensors.bands import SENSORS

LISTS = {"train": "train", "val": "valid", "test": "test", "bolivia": "bolivia"}


class Sen1Floods11(EarthDataset):
    """Sen1Floods11, its hand-labelled chips; the module says what its files hold."""

    name = "sen1floods11"
    folder = "sen1floods11"
    classes = ("not water", "water")
    all_bands = tuple(SENSORS["sentinel2"])
    scale = 1e4
    splits = tuple(LISTS)
    nodata = "nan"
    source = "https://github.com/cloudtostreet/Sen1Floods11 (gsutil -m rsync -r gs://sen1floods11 <folder>)"
    licence = "not stated by its publisher; Copernicus Sentinel terms for the images"

    def find(self) -> list[tuple[Path, Path]]:
        if (self.root / "v1.1").is_dir():
            self.root = self.root / "v1.1"
        folder = self.root / "data" / "flood_events" / "HandLabeled"
        found = []
        for line in self.read_list(f"splits/flood_handlabeled/flood_{LISTS[self.split]}_data.csv"):
            chip = line.split(",")[0].removesuffix("_S1Hand.tif")
            found.append((folder / "S2Hand" / f"{chip}_S2Hand.tif", folder / "LabelHand" / f"{chip}_LabelHand.tif"))
        return found

    def reflectance(self, values: Tensor) -> Tensor:
        return torch.where((values == 0).all(0), torch.nan, super().reflectance(values))

    def about(self, item: tuple[Path, Path]) -> dict:
        return {"event": item[0].name.split("_")[0]}
