"""Data sets, one file each, in the sample form of ``EarthDataset``. ``DATASETS`` names the labelled ones.

    burnt = load("burn_scars", split="train", bands=("B04", "B03", "B02", "B8A"))

``spectral_scenes`` and ``phenology`` are simulated; the others read a folder under ``PEFTLIB_DATA``.
"""

from importlib import import_module
from pkgutil import iter_modules

from peftlib.data import readers, simulated
from peftlib.data.datamodule import EarthData
from peftlib.data.dataset import DATASETS, EarthDataset, collate
from peftlib.data.example_chip import SAVANNA_CLASSES, ChipCrops, savanna_chip, savanna_classes
from peftlib.data.image_folder import from_folder
from peftlib.data.simulated.phenology import Phenology
from peftlib.data.simulated.spectral_scenes import SpectralScenes

__all__ = ["DATASETS", "SAVANNA_CLASSES", "ChipCrops", "EarthData", "EarthDataset", "Phenology", "SpectralScenes"]
__all__ += ["collate", "from_folder", "load", "readers", "savanna_chip", "savanna_classes", "simulated"]

for _room in (readers, simulated):
    for _module in iter_modules(_room.__path__):
        import_module(f"{_room.__name__}.{_module.name}")


def load(name: str, **options) -> EarthDataset:
    """A data set by its name, one of ``DATASETS``; options are those of its class. ValueError: an unknown name."""
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; choose from {', '.join(DATASETS)}")
    return DATASETS[name](**options)
