"""Ways to adapt a ViT's blocks, a file each: a new file in this folder is a new method, registered by its class."""

import importlib
import pkgutil

from peftlib.methods.base import INPUTS, METHODS, Input, Method, input_from, method_from
from peftlib.methods.inputs import RGB, Inflated
from peftlib.methods.selective import BitFit, Frozen, Full, NormTuning  # first of all: the order of tables and colours

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "INPUTS", "METHODS", "RGB", "BitFit", "Frozen", "Full", "Inflated", "Input", "Method", "NormTuning",
    "input_from", "method_from",
]  # fmt: skip
