"""L8 Biome clouds: cloud, thin cloud, shadow or clear, chips of 256 px of Landsat-8 at 30 m, eight biomes.

* Source: the USGS cloud cover validation data (Foga et al. 2017; public domain), cut into chips by Peng et al.,
  github.com/LK-Peng/CNN-based-Cloud-Detection-Methods, folder ``example`` (MIT). The whole scenes, 96 of them, are
  another layout: cut chips from them first.
* Files: ``<split>/images/<Biome>_<scene>_<place>.tif`` and ``<split>/masks/`` with the same names (the publisher's
  folders are ``Images`` and ``Masks``). Bands: red, green, blue, NIR, SWIR1, SWIR2, cirrus, thermal.
* Values: reflectance, and kelvin in the thermal band; in files of integers x 1e4 and x 100. A pixel that is 0 in every
  band has no data. Masks: 64 shadow, 128 clear, 192 thin cloud, 255 cloud, 0 fill (here -1).
* ``meta["biome"]``: hold biomes out to test what a model makes of land that it has not seen. No place, no date.
"""

from pathlib import Path

import torch

from peftlib.data.dataset import EarthDataset, read_tif
from peftlib.data.files import read_mask

CODES = {0: -1, 128: 0, 64: 1, 192: 2, 255: 3}
REFLECTANCE, KELVIN = 1e-4, 1e-2
BIOMES = ("Barren", "Forest", "GrassCrops", "Shrubland", "SnowIce", "Urban", "Water", "Wetlands")


class L8Biome(EarthDataset):
    """Chips of L8 Biome; the module says what its files hold."""

    name = "l8biome"
    folder = "l8biome"
    other_folders = ("l8biome_cloud_29",)
    task = "segmentation"
    classes = ("clear", "cloud shadow", "thin cloud", "cloud")
    sensor = "landsat8"
    all_bands = ("B4", "B3", "B2", "B5", "B6", "B7", "B9", "B10")
    gsd = 30.0
    source = "https://github.com/LK-Peng/CNN-based-Cloud-Detection-Methods (folder example)"
    licence = "MIT (chips); public domain (USGS scenes)"

    def find(self) -> list[tuple[Path, Path]]:
        folder = self.root / self.split
        images, masks = ("Images", "Masks") if (folder / "Images").is_dir() else ("images", "masks")
        return [(path, folder / masks / path.name) for path in sorted((folder / images).glob("*.tif"))]

    def read(self, item: tuple[Path, Path]) -> dict:
        path, mask_path = item
        values, meta = read_tif(path)
        image = torch.where((values == 0).all(0), torch.nan, values.float())
        if not values.is_floating_point():
            image[:-1] *= REFLECTANCE
            image[-1] *= KELVIN
        codes = read_mask(mask_path)
        if unknown := set(codes.unique().tolist()) - set(CODES):
            raise ValueError(f"{mask_path}: mask holds {sorted(unknown)}, codes are {sorted(CODES)}")
        mask = torch.zeros_like(codes)
        for code, number in CODES.items():
            mask[codes == code] = number
        biome = path.name.split("_")[0]
        if biome not in BIOMES:
            raise ValueError(f"{path}: the name does not begin with a biome, one of {BIOMES}")
        return {"image": image, "mask": mask, "meta": meta | {"source": str(path), "biome": biome}}
