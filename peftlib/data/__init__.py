"""Data sets, one file each, one sample form.

A sample is a dict: ``image`` (C, H, W) float32 reflectance, ``label`` or ``mask`` where there is one, ``bands`` (names
in channel order), ``sensor``, and ``meta`` with ``gsd`` in metres and the source. Crops of one keep image and mask.

``DATASETS`` names the labelled ones. ``spectral_scenes`` and ``phenology`` are made on the fly; each other one says
where its files come from, and reads them from a folder under ``PEFTLIB_DATA``:

    from peftlib.data import load
    burnt = load("burn_scars", split="train", bands=("B04", "B03", "B02", "B8A"))
"""

from peftlib.data.datamodule import EarthData
from peftlib.data.dataset import EarthDataset, collate
from peftlib.data.example_chip import SAVANNA_CLASSES, ChipCrops, savanna_chip, savanna_classes
from peftlib.data.image_folder import from_folder
from peftlib.data.readers.ben import BigEarthNet
from peftlib.data.readers.brick_kiln import BrickKiln
from peftlib.data.readers.burn_scars import BurnScars
from peftlib.data.readers.eurosat import EuroSAT
from peftlib.data.readers.forestnet import ForestNet
from peftlib.data.readers.l8biome import L8Biome
from peftlib.data.readers.mados import Mados
from peftlib.data.readers.marida import Marida
from peftlib.data.readers.sen1floods11 import Sen1Floods11
from peftlib.data.readers.so2sat import So2Sat
from peftlib.data.simulated.phenology import Phenology
from peftlib.data.simulated.spectral_scenes import SpectralScenes

DATASETS: dict[str, type[EarthDataset]] = {
    cls.name: cls
    for cls in (
        SpectralScenes,
        Phenology,
        So2Sat,
        BrickKiln,
        ForestNet,
        BurnScars,
        Mados,
        Sen1Floods11,
        EuroSAT,
        BigEarthNet,
        Marida,
        L8Biome,
    )
}

__all__ = [
    "SAVANNA_CLASSES",
    "DATASETS",
    "ChipCrops",
    "EarthData",
    "EarthDataset",
    "Phenology",
    "SpectralScenes",
    "collate",
    "from_folder",
    "load",
    "savanna_chip",
    "savanna_classes",
]


def load(name: str, **options) -> EarthDataset:
    """A data set by its name.

    Args:
        name: one of ``DATASETS``.
        options: of its class: ``split``, ``root``, ``bands``, ``download``, ``nodata``, and its own.

    Raises:
        ValueError: an unknown name.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; choose from {', '.join(DATASETS)}")
    return DATASETS[name](**options)
