"""MADOS, marine debris and oil spills: 15 classes of the sea surface, 240 px Sentinel-2 crops at 10 m, sparse labels.

* Source: Kikaki et al. 2024, zenodo.org/records/10664073; CC-BY-4.0. 174 scenes, 2,803 crops.
* Files: ``Scene_<s>/<10, 20 or 60>/Scene_<s>_L2R_rhorc_<nm>_<crop>.tif``, a band each (the nanometres differ a little
  between Sentinel-2A and B), ``Scene_<s>/10/Scene_<s>_L2R_cl_<crop>.tif``; lists ``splits/<split>_X.txt`` of
  ``Scene_<s>_<crop>``. The 20 m and 60 m bands are repeated onto the 10 m grid, as the authors do.
* Bands: Sentinel-2 without B09 and B10.
* Values: Rayleigh-corrected reflectance of ACOLITE, NaN where there is no data. Masks: 0 unlabelled (here -1), 1 to 15.
"""

from pathlib import Path

from peftlib.data.dataset import EarthDataset
from peftlib.data.download import obtain
from peftlib.data.files import read_bands, read_list, read_mask
from peftlib.sensors.bands import SENSORS

URL = "https://zenodo.org/records/10664073/files/MADOS.zip"
CHECKSUM, SIZE = "md5:1076b25d2797be3095d82a61105c7380", 4_038_418_740
FARTHEST = 20  # nm between a file's name and the band's centre


class Mados(EarthDataset):
    """MADOS; the module says what its files hold."""

    name = "mados"
    folder = "MADOS"
    task = "segmentation"
    classes = (
        "Marine Debris",
        "Dense Sargassum",
        "Sparse Floating Algae",
        "Natural Organic Material",
        "Ship",
        "Oil Spill",
        "Marine Water",
        "Sediment-Laden Water",
        "Foam",
        "Turbid Water",
        "Shallow Water",
        "Waves & Wakes",
        "Oil Platform",
        "Jellyfish",
        "Sea snot",
    )
    sensor = "sentinel2"
    all_bands = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
    gsd = 10.0
    nodata = "nan"
    source = "https://zenodo.org/records/10664073"
    licence = "CC-BY-4.0"

    def download(self) -> None:
        """The archive, 4.0 GB, beside the folder that it becomes."""
        obtain(URL, self.root.parent / "MADOS.zip", self.root, CHECKSUM, SIZE, inner="MADOS")

    def find(self) -> list[tuple[str, ...]]:
        return [tuple(name.rsplit("_", 1)) for name in read_list(self, f"splits/{self.split}_X.txt")]

    def read(self, item: tuple[str, str]) -> dict:
        scene, crop = item
        paths = self.band_files(scene, crop)
        image, meta = read_bands(paths)
        mask = read_mask(self.mask_file(scene, crop))
        source = str(paths["B02"])
        return {"image": image, "mask": mask - 1, "meta": meta | {"source": source, "scene": scene}}

    def files(self, item: tuple[str, str]) -> list[Path]:
        return [*self.band_files(*item).values(), self.mask_file(*item)]

    def mask_file(self, scene: str, crop: str) -> Path:
        return self.root / scene / "10" / f"{scene}_L2R_cl_{crop}.tif"

    def band_files(self, scene: str, crop: str) -> dict[str, Path]:
        """Band -> its file, by the wavelength in the name.

        Raises:
            FileNotFoundError: a band without a file. ValueError: a file that is no band, or two of one.
        """
        centres = {band: SENSORS["sentinel2"][band] for band in self.all_bands}
        found = {}
        for path in sorted((self.root / scene).glob(f"*/{scene}_L2R_rhorc_*_{crop}.tif")):
            nm = path.stem.split("_")[-2]
            band = min(centres, key=lambda b: abs(centres[b] - float(nm))) if nm.isdigit() else None
            if band is None or abs(centres[band] - float(nm)) > FARTHEST or band in found:
                raise ValueError(f"{path}: {nm} nm is no band of {self.all_bands}, or a second file of one")
            found[band] = path
        if missing := [band for band in self.all_bands if band not in found]:
            raise FileNotFoundError(self.missing(f"files of bands {missing} of {scene}, crop {crop}"))
        return {band: found[band] for band in self.all_bands}
