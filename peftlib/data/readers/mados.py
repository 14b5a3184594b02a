"""MADOS, marine debris and oil spills: 15 classes of the sea surface, 240 px Sentinel-2 crops at 10 m, sparse labels.

* Source: Kikaki et al. 2024, zenodo.org/records/10664073; CC-BY-4.0. 174 scenes, 2,803 crops. ``MADOS.zip``,
  4 GB, has the md5 1076b25d2797be3095d82a61105c7380.
* Files: ``Scene_<s>/<10, 20 or 60>/Scene_<s>_L2R_rhorc_<nm>_<crop>.tif``, a band each (the nanometres differ a little
  between Sentinel-2A and B), ``Scene_<s>/10/Scene_<s>_L2R_cl_<crop>.tif``; lists ``splits/<split>_X.txt`` of
  ``Scene_<s>_<crop>``. The 20 m and 60 m bands are repeated onto the 10 m grid, as the authors do.
* Bands: Sentinel-2 without B09 and B10.
* Values: Rayleigh-corrected reflectance of ACOLITE, NaN where there is no data. Masks: 0 unlabelled (here -1), 1 to 15.
"""

from pathlib import Path

from torch import Tensor

from peftlib.data.dataset import EarthDataset
from peftlib.sensors.bands import SENSORS

FARTHEST = 20  # nm between a file's name and the band's centre


class Mados(EarthDataset):
    """MADOS; the module says what its files hold."""

    name = "mados"
    folder = "MADOS"
    classes = (
        "Marine Debris", "Dense Sargassum", "Sparse Floating Algae", "Natural Organic Material", "Ship", "Oil Spill",
        "Marine Water", "Sediment-Laden Water", "Foam", "Turbid Water", "Shallow Water", "Waves & Wakes",
        "Oil Platform", "Jellyfish", "Sea snot",
    )  # fmt: skip
    all_bands = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
    nodata = "nan"
    source = "https://zenodo.org/records/10664073"

    def find(self) -> list[tuple[str, ...]]:
        return [tuple(name.rsplit("_", 1)) for name in self.read_list(f"splits/{self.split}_X.txt")]

    def class_numbers(self, mask: Tensor) -> Tensor:
        return mask - 1

    def about(self, item: tuple[str, str]) -> dict:
        return {"scene": item[0]}

    def files(self, item: tuple[str, str]) -> list[Path]:
        """The file of each band, by the wavelength in its name, and that of the mask."""
        scene, crop = item
        paths = (self.root / scene).glob(f"*/{scene}_L2R_rhorc_*_{crop}.tif")
        by_nm, found = {int(path.stem.split("_")[-2]): path for path in paths}, []
        for band in self.all_bands:
            centre = SENSORS["sentinel2"][band]
            away, nearest = min(((abs(nm - centre), nm) for nm in by_nm), default=(centre, 0))
            if away > FARTHEST:
                raise FileNotFoundError(self.missing(f"file of band {band!r} of {scene}, crop {crop}"))
            found.append(by_nm[nearest])
        return [*found, self.root / scene / "10" / f"{scene}_L2R_cl_{crop}.tif"]
