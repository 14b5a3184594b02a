"""BigEarthNet v2 (reBEN): 19 classes of land cover, several a patch; 120 px Sentinel-2 of ten European countries, 10 m.

* Source: Clasen et al. 2024, bigearth.net; torchgeo's copy is fetched. CDLA-Permissive-1.0.
* Files, as torchgeo has them: ``BigEarthNet-S2/<tile>/<patch>/<patch>_<band>.tif``, a band each at 10, 20 or 60 m
  (repeated onto the 10 m grid), and ``metadata.parquet`` with labels, split and country of each patch.
* Bands: Sentinel-2 without B10. Values: surface reflectance x 1e4.
* Protocol ``"7k"``, of the study of Marti-Escofet et al. 2025: train 4,690, val 946 and test 945 patches of seen
  countries, ood 807 of Austria and Ireland, of which the others have none. Its lists, ``reBEN_7k/<split>.txt`` here,
  are in github.com/IBM/peft-geofm, folder ``datasets_splits/reBEN``: they fix the patches. Scores do not compare with
  its tables: its published configurations segment the reference maps, this reads which classes a patch has.
* Protocol ``"all"``: every patch of the metadata's split, of seen countries; ood is the test split of the two others.
"""

import shutil
from pathlib import Path

import torch

from peftlib.data.dataset import EarthDataset, read_bands
from peftlib.data.download import fetch, unpack

URL = "hf://torchgeo/bigearthnet@3cf3a5910a5302d449fdb8e570e5b78de24fe07f/V2/"
METADATA, METADATA_CHECKSUM = "metadata.parquet", "md5:55687065e77b6d0b0f1ff604a6e7b49c"
COLUMNS = ["patch_id", "labels", "split", "country"]
PARTS = {
    "BigEarthNet-S2.tar.gzaa": "md5:94e8ed32065234d3ab46353d814778d1",
    "BigEarthNet-S2.tar.gzab": "md5:24c223d9e36166136c13b24a27debe34",
}
IMAGES = "BigEarthNet-S2"
HELD_OUT = ("Austria", "Ireland")
PROTOCOLS = ("7k", "all")
SPLITS = {"train": "train", "val": "validation", "test": "test", "ood": "test"}  # ours -> in the metadata


class BigEarthNet(EarthDataset):
    """BigEarthNet v2; the module says what its files hold.

    Args:
        protocol: ``"7k"``, the patches that the study lists, or ``"all"``.
        options: as of ``EarthDataset``.
    """

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
    sensor = "sentinel2"
    all_bands = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
    gsd = 10.0
    splits = tuple(SPLITS)
    source = "https://bigearth.net (lists of the 7k protocol: https://github.com/IBM/peft-geofm, datasets_splits/reBEN)"
    licence = "CDLA-Permissive-1.0"

    def __init__(self, split: str = "train", *, protocol: str = "7k", **options):
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol={protocol!r}; choose from {PROTOCOLS}")
        self.protocol = protocol
        super().__init__(split, **options)

    def download(self) -> None:
        """The Sentinel-2 archive, about 60 GB in two parts, and the metadata; needs three times that on the disk."""
        fetch(URL + METADATA, self.root / METADATA, METADATA_CHECKSUM)
        if (self.root / IMAGES).is_dir():
            return
        parts = [fetch(URL + name, self.root / name, checksum) for name, checksum in PARTS.items()]
        whole = self.root / f"{IMAGES}.tar.gz"
        with open(whole, "wb") as file:
            for part in parts:
                with open(part, "rb") as piece:
                    shutil.copyfileobj(piece, file)
        unpack(whole, self.root / IMAGES, inner=IMAGES)
        whole.unlink()

    def find(self) -> list[tuple[str, tuple[str, ...], str]]:
        listed = set(self.read_list(f"reBEN_7k/{self.split}.txt")) if self.protocol == "7k" else None
        found = []
        for patch, labels, split, country in self._rows():
            seen = country not in HELD_OUT
            wanted = patch in listed if listed else split == SPLITS[self.split] and seen == (self.split != "ood")
            if wanted:
                found.append((patch, tuple(labels), country))
        if listed and len(found) != len(listed):
            raise ValueError(f"{self.root}: {METADATA} lacks {len(listed) - len(found)} of {len(listed)} patches")
        return found

    def _rows(self) -> zip:
        """Patch, labels, split and country of each patch."""
        import pandas as pd

        if not (path := self.root / METADATA).is_file():
            raise FileNotFoundError(self.missing(METADATA))
        try:
            table = pd.read_parquet(path, columns=COLUMNS)
        except (ValueError, OSError, KeyError) as error:
            raise ValueError(f"{path} is not BigEarthNet's metadata with {COLUMNS} ({error})") from error
        return zip(*(table[column] for column in COLUMNS), strict=True)

    def files(self, item: tuple[str, tuple[str, ...], str]) -> list[Path]:
        patch = item[0]
        folder = self.root / IMAGES / patch.rsplit("_", 2)[0] / patch
        return [folder / f"{patch}_{band}.tif" for band in self.all_bands]

    def read(self, item: tuple[str, tuple[str, ...], str]) -> dict:
        patch, labels, country = item
        files = self.files(item)
        folder = files[0].parent
        image, meta = read_bands(files)
        if unknown := set(labels) - set(self.classes):
            raise ValueError(f"{folder}: labels {sorted(unknown)} are no classes")
        label = torch.tensor([float(name in labels) for name in self.classes])
        day = patch.split("_")[2][:8]
        meta |= {"source": str(folder), "country": country, "date": f"{day[:4]}-{day[4:6]}-{day[6:]}"}
        return {"image": image / 1e4, "label": label, "meta": meta}
