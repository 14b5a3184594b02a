"""Data sets, one file each, in one sample form.

A sample is a dict: ``image`` (C, H, W) float32 reflectance, ``label`` or ``mask`` where there is one, ``bands`` (names
in channel order), ``sensor``, and ``meta`` with ``gsd`` in metres and the source. Crops of one keep image and mask.

``DATASETS`` names the labelled ones. ``spectral_scenes`` and ``phenology`` are simulated on the fly; each other one
says where its files come from, and reads them from a folder under ``PEFTLIB_DATA``:

    from peftlib.data import load
    burnt = load("burn_scars", split="train", bands=("B04", "B03", "B02", "B8A"))
"""

from peftlib.data import readers, simulated
from peftlib.data.datamodule import EarthData
from peftlib.data.dataset import DATASETS, EarthDataset, collate
from peftlib.data.example_chip import SAVANNA_CLASSES, ChipCrops, savanna_chip, savanna_classes
from peftlib.data.image_folder import from_folder
from peftlib.data.simulated.phenology import Phenology
from peftlib.data.simulated.spectral_scenes import SpectralScenes

__all__ = [
    "DATASETS",
    "SAVANNA_CLASSES",
    "ChipCrops",
    "EarthData",
    "EarthDataset",
    "Phenology",
    "SpectralScenes",
    "collate",
    "from_folder",
    "load",
    "readers",
    "savanna_chip",
    "savanna_classes",
    "simulated",
]


def load(name: str, **options) -> EarthDataset:
    """A data set by its name, one of ``DATASETS``; options are those of its class: ``split``, ``bands``, ...

    Raises:
        ValueError: an unknown name.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; choose from {', '.join(DATASETS)}")
    return DATASETS[name](**options)
