"""Images made by physics from measured spectra, with known truth. Every file here is imported, as in ``readers``."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
