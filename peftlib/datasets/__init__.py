"""Data sets, one file each, one sample form.

A sample is a dict: ``image`` (C, H, W) float32 reflectance, ``label`` or ``mask`` where there is one, ``bands`` (names
in channel order), ``sensor``, and ``meta`` with ``gsd`` in metres and the source. Crops of one keep image and mask.

``DATASETS`` names the labelled ones. ``spectral_scenes`` and ``phenology`` are made on the fly; each other one says
where its files come from, and reads them from a folder under ``PEFTLIB_DATA``:

    from peftlib.datasets import load
    burnt = load("burn_scars", split="train", bands=("B04", "B03", "B02", "B8A"))
"""

from peftlib.datasets.base import EarthDataset, collate
from peftlib.datasets.ben import BigEarthNet
from peftlib.datasets.brick_kiln import BrickKiln
from peftlib.datasets.burn_scars import BurnScars
from peftlib.datasets.eurosat import EuroSAT
from peftlib.datasets.folder import from_folder
from peftlib.datasets.forestnet import ForestNet
from peftlib.datasets.l8biome import L8Biome
from peftlib.datasets.mados import Mados
from peftlib.datasets.marida import Marida
from peftlib.datasets.module import EarthData
from peftlib.datasets.phenology import Phenology
from peftlib.datasets.savanna import CLASSES, ChipCrops, savanna_chip, savanna_classes
from peftlib.datasets.sen1floods11 import Sen1Floods11
from peftlib.datasets.so2sat import So2Sat
from peftlib.datasets.spectral_scenes import SpectralScenes

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
    "CLASSES",
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
