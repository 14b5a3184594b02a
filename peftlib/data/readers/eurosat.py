"""EuroSAT, all bands: ten classes of land use, 27,000 Sentinel-2 chips of 64 px of Europe at 10 m.

* Source: Helber et al. 2019, github.com/phelber/EuroSAT; MIT, Copernicus Sentinel terms for the images. torchgeo's
  ``EuroSAT(root, split, download=True, checksum=True)`` fetches it, 2 GB, with the list of that split.
* Files: 13-band GeoTIFFs ``<Class>_<n>.tif`` in a folder a class; **B8A is the last band**, after B12.
* Splits: torchgeo's lists ``eurosat-<split>.txt`` (16,200 / 5,400 / 5,400); images in ``ds/images/...`` as torchgeo
  unpacks them. Folders ``train/<Class>/*.tif`` and ``test/<Class>/*.tif`` are read too; that layout has no val.
* Values: top-of-atmosphere reflectance x 1e4. No pixels without data. The place is in the files, no date.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from peftlib.data.dataset import EarthDataset, read_tif

IMAGES = Path("ds/images/remote_sensing/otherDatasets/sentinel_2/tif")


class EuroSAT(EarthDataset):
    """EuroSAT. ``longitudes``: chips from the first to below the second only, in degrees east by the place in each
    file; other options are those of ``EarthDataset``."""

    name = "eurosat"
    folder = "eurosat"
    other_folders = ("eurosat_ms_270",)
    task = "classification"
    classes = (
        "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial",
        "Pasture", "PermanentCrop", "Residential", "River", "SeaLake",
    )  # fmt: skip
    all_bands = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")
    scale = 1e4
    source = "https://huggingface.co/datasets/torchgeo/eurosat (torchgeo.datasets.EuroSAT fetches it: download=True)"

    def __init__(self, split: str = "train", *, longitudes: Sequence[float] | None = None, **options):
        self.longitudes = longitudes
        super().__init__(split, **options)

    def find(self) -> list[Path]:
        if (self.root / "train").is_dir() and not (self.root / "ds").is_dir():
            found = sorted((self.root / self.split).glob("*/*.tif"))
        else:
            stems = [Path(n).stem for n in self.read_list(f"eurosat-{self.split}.txt")]
            found = [self.root / IMAGES / stem.rsplit("_", 1)[0] / f"{stem}.tif" for stem in stems]
        for path in found:
            if path.parent.name not in self.classes:
                raise ValueError(f"{path}: {path.parent.name!r} is no class; classes are {self.classes}")
        if self.longitudes is not None:
            west, east = self.longitudes
            found = [path for path in found if west <= longitude(path) < east]
        return found

    def read(self, item: Path) -> dict:
        return super().read(item) | {"label": self.classes.index(item.parent.name)}


@cache
def longitude(path: Path) -> float:
    """Of the centre of a chip, in degrees east; ValueError for a file without a place."""
    _, meta = read_tif(path)
    if "location" not in meta:
        raise ValueError(f"{path} has no place; longitudes cannot be chosen")
    return meta["location"][1]
