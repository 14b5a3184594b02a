"""Spectral indices of an image, by their formulas in spyndex."""

import difflib
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from peftlib.sensors.bands import BandSet

# The indices EMB reads by default, by their names in spyndex (its BI is the bare soil index, often written BSI).
DEFAULT_INDICES = ("NDVI", "NDWI", "MNDWI", "NBR", "NDMI", "BI")


@cache
def _spyndex():
    import spyndex

    return spyndex


def spyndex_bands(bands: BandSet) -> dict[str, int]:
    """spyndex's standard band names (N, R, S1 ...) -> position of the band nearest to that range's centre."""
    found = {}
    for standard, band in _spyndex().bands.items():
        low, high = band.min_wavelength, band.max_wavelength
        inside = [i for i, nm in enumerate(bands.wavelengths) if low <= nm <= high]
        if inside:
            found[standard] = min(inside, key=lambda i: abs(bands.wavelengths[i] - (low + high) / 2))
    # The image's own red, green and blue, so that an index and the model agree on what they are.
    return found | dict(zip("RGB", bands.rgb, strict=True))


def available_indices(bands: BandSet) -> tuple[str, ...]:
    """Those of ``DEFAULT_INDICES`` that these bands allow."""
    have = spyndex_bands(bands).keys()
    return tuple(name for name in DEFAULT_INDICES if set(_spyndex().indices[name].bands) <= have)


def index_function(name: str, bands: BandSet) -> Callable[[Tensor], Tensor]:
    """Compile spyndex's formula of one index into ``f(x: (B, C, H, W) reflectance) -> (B, H, W)``.

    ``spyndex.computeIndex`` evaluates the text at every call, which ``torch.compile`` cannot follow. ValueError: an
    unknown index, or one that needs a band the image does not have, or a constant without a value.
    """
    catalogue, have = _spyndex(), spyndex_bands(bands)
    if name not in catalogue.indices:
        near = difflib.get_close_matches(name, catalogue.indices, n=3)
        raise ValueError(f"unknown spectral index {name!r}; spyndex has {len(catalogue.indices)}, near: {near}")
    entry = catalogue.indices[name]
    defaults = {symbol: catalogue.constants[symbol].default for symbol in entry.bands if symbol in catalogue.constants}
    constants = {symbol: value for symbol, value in defaults.items() if isinstance(value, int | float)}
    symbols = [symbol for symbol in entry.bands if symbol not in constants]
    if missing := [symbol for symbol in symbols if symbol not in have]:
        raise ValueError(f"index {name} needs {symbols} ({missing} missing among {bands.names})")
    formula = eval(f"lambda {', '.join(symbols)}: {entry.formula}", constants)
    positions = [have[symbol] for symbol in symbols]
    return lambda x: formula(*(x[:, i] for i in positions))


class SpectralIndices(nn.Module):
    """Spectral indices of an image, kept in [-1, 1].

    Normalised differences lie there for positive reflectance; what noise near zero reflectance throws outside, or a
    zero denominator makes non-finite, is clamped (0/0 becomes 0), so that one dark pixel cannot drown a patch.
    ValueError: an index that often lies elsewhere (a ratio, say): clamped, it would be a constant.
    """

    def __init__(self, names: Sequence[str], bands: BandSet):
        super().__init__()
        self.names, self.bands = tuple(names), bands
        self.functions = [index_function(name, bands) for name in self.names]
        draw = torch.Generator().manual_seed(0)
        usual = torch.rand(1, len(bands), 64, 64, generator=draw, device="cpu") * 0.5 + 0.01
        for name, function in zip(self.names, self.functions, strict=True):
            outside = float((function(usual).abs() > 1).float().mean())
            if outside > 0.1:
                raise ValueError(
                    f"index {name} ({_spyndex().indices[name].formula}) lies outside [-1, 1] for {outside:.0%} of "
                    f"reflectances; choose normalised differences such as {', '.join(DEFAULT_INDICES)}"
                )

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) reflectance -> (B, number of indices, H, W)."""
        if not self.functions:
            return x[:, :0]
        values = torch.stack([function(x) for function in self.functions], dim=1)
        return torch.nan_to_num(values, nan=0.0).clamp(-1.0, 1.0)

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "functions"}  # compiled, so not picklable

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.functions = [index_function(name, self.bands) for name in self.names]
