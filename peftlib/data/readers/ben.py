"""BigEarthNet v2 (reBEN): 19 classes of land cover, several a patch; 120 px Sentinel-2 of ten European countries, 10 m.

* Source: Clasen et al. 2024, bigearth.net, or the data set torchgeo/bigearthnet on the Hugging Face hub (60 GB).
* Files, as torchgeo has them: ``BigEarthNet-S2/<tile>/<patch>/<patch>_<band>.tif``, a band each at 10, 20 or 60 m
  (repeated onto the 10 m grid), and ``metadata.parquet`` with labels and country of each patch.
* Bands: Sentinel-2 without B10. Values: surface reflectance x 1e4.
* Splits: those of the study of Marti-Escofet et al. 2025, train 4,690, val 946 and test 945 patches of eight countries,
  ood 807 of Austria and Ireland, of which the others have none. Its lists, ``reBEN_7k/<split>.txt`` here, are in
  github.com/IBM/peft-geofm, folder ``datasets_splits/reBEN``. Scores do not compare with its tables: its published
  configurations segment the reference maps, this reads which classes a patch has.
"""

from pathlib import Path

import torch

from peftlib.data.dataset import EarthDataset, date_in

METADATA = "metadata.parquet"
COLUMNS = ["patch_id", "labels", "country"]
IMAGES = "BigEarthNet-S2"
Patch = tuple[str, tuple[str, ...], str]  # name, labels, country


class BigEarthNet(EarthDataset):
    """BigEarthNet v2, the 7k patches of a study; the module says what its files hold."""

    name = "ben"
    folder = "bigearthnet_v2"
    task = "multilabel"
    classes = (
        "Urban fabric", "Industrial or commercial units", "Arable land", "Permanent crops", "Pastures",
        "Complex cultivation patterns",
        "Land principally occupied by agriculture, with significant areas of natural vegetation",
        "Agro-forestry areas", "Broad-leaved forest", "Coniferous forest", "Mixed forest",
        "Natural grassland and sparsely vegetated areas", "Moors, heathland and sclerophyllous vegetation",
        "Transitional woodland, shrub", "Beaches, dunes, sands", "Inland wetlands", "Coastal wetlands",
        "Inland waters", "Marine waters",
    )  # fmt: skip
    all_bands = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
    scale = 1e4
    splits = ("train", "val", "test", "ood")
    source = "https://bigearth.net (lists of the splits: https://github.com/IBM/peft-geofm, datasets_splits/reBEN)"
    licence = "CDLA-Permissive-1.0"

    def find(self) -> list[Patch]:
        import pandas as pd

        listed, path = set(self.read_list(f"reBEN_7k/{self.split}.txt")), self.there(METADATA)
        try:
            rows = pd.read_parquet(path, columns=COLUMNS)[COLUMNS].itertuples(index=False)
        except (ValueError, OSError, KeyError) as error:
            raise ValueError(f"{path} is not BigEarthNet's metadata with {COLUMNS} ({error})") from error
        found = [(patch, tuple(labels), country) for patch, labels, country in rows if patch in listed]
        if len(found) != len(listed):
            raise ValueError(f"{path} lacks {len(listed) - len(found)} of {len(listed)} patches")
        return found

    def files(self, item: Patch) -> list[Path]:
        patch = item[0]
        folder = self.root / IMAGES / patch.rsplit("_", 2)[0] / patch
        return [folder / f"{patch}_{band}.tif" for band in self.all_bands]

    def about(self, item: Patch) -> dict:
        return {"country": item[2], "date": date_in(Path(item[0]), r"_(\d{8})T", "%Y%m%d")}

    def read(self, item: Patch) -> dict:
        if unknown := set(item[1]) - set(self.classes):
            raise ValueError(f"{item[0]}: labels {sorted(unknown)} are no classes")
        return super().read(item) | {"label": torch.tensor([float(name in item[1]) for name in self.classes])}
