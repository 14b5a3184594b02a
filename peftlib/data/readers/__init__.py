"""One file a source. A file that lies here is imported, and its data sets enter ``DATASETS``."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
