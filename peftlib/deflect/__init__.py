"""DEFLECT in four files: ``patch_embedding`` (EMB), ``attention`` (uAtt), ``norm_constraint``, ``method``."""

from peftlib.deflect import time_series  # registers its input
from peftlib.deflect.method import Deflect
from peftlib.deflect.patch_embedding import EMB

__all__ = ["EMB", "Deflect", "time_series"]
