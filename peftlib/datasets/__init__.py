"""Data sets, one file each, one sample form.

A sample is a dict: ``image`` (C, H, W) float32 reflectance, ``label`` or ``mask`` where there is one, ``bands`` (names
in channel order), ``sensor``, and ``meta`` with ``gsd`` in metres and the source. Crops of one keep image and mask.
"""

from peftlib.datasets.savanna import CLASSES, ChipCrops, savanna_chip, savanna_classes

__all__ = ["CLASSES", "ChipCrops", "savanna_chip", "savanna_classes"]
