"""Spectral indices of an image, by their formulas in spyndex."""

import ast
import difflib
from collections.abc import Mapping, Sequence
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


def available_indices(bands: BandSet, candidates: Sequence[str] = DEFAULT_INDICES) -> tuple[str, ...]:
    """Those of ``candidates`` that read a band beyond RGB and that these bands allow."""
    have = spyndex_bands(bands)
    return tuple(name for name in candidates if _missing_for(name, have) == [] and _beyond_rgb(name, have, bands))


def _inputs(name: str) -> list[str]:
    """The bands (not the constants) in an index's formula."""
    catalogue = _spyndex().indices
    if name not in catalogue:
        near = difflib.get_close_matches(name, catalogue, n=3)
        raise ValueError(f"unknown spectral index {name!r}; spyndex has {len(catalogue)}, near: {near}")
    return [symbol for symbol in catalogue[name].bands if symbol not in _spyndex().constants]


def _missing_for(name: str, have: Mapping[str, int]) -> list[str]:
    return [symbol for symbol in _inputs(name) if symbol not in have]


def _beyond_rgb(name: str, have: Mapping[str, int], bands: BandSet) -> bool:
    return any(have[symbol] not in bands.rgb for symbol in _inputs(name))


def index_function(name: str, bands: BandSet):
    """Compile spyndex's formula of one index into ``f(x: (B, C, H, W) reflectance) -> (B, H, W)``.

    spyndex evaluates its formula text at every call; compiling once keeps the text out of the hot path.

    Raises:
        ValueError: unknown index, or one that needs a band the image does not have.
    """
    have = spyndex_bands(bands)
    missing = _missing_for(name, have)
    if missing:
        raise ValueError(f"index {name} needs {_inputs(name)} ({missing} missing among {bands.names})")
    entry = _spyndex().indices[name]
    constants = {
        symbol: _spyndex().constants[symbol].default
        for symbol in entry.bands
        if symbol in _spyndex().constants and symbol not in have
    }
    open_constants = [symbol for symbol, value in constants.items() if not isinstance(value, int | float)]
    if open_constants:
        raise ValueError(f"index {name} needs constants {open_constants} that have no standard value")
    symbols = _inputs(name)
    positions = [have[symbol] for symbol in symbols]
    formula = eval(f"lambda {', '.join(symbols)}: {_arithmetic_only(entry.formula)}", constants)
    return lambda x: formula(*(x[:, i] for i in positions))


def _arithmetic_only(formula: str) -> str:
    """The formula itself, once it is known to be names, numbers and arithmetic: it goes through ``eval``."""
    allowed = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Name, ast.Load, ast.Constant, ast.operator, ast.unaryop)
    bad = [node for node in ast.walk(ast.parse(formula, mode="eval")) if not isinstance(node, allowed)]
    if bad:
        raise ValueError(f"formula {formula!r} is more than arithmetic ({type(bad[0]).__name__}); not supported")
    return formula


class SpectralIndices(nn.Module):
    """Spectral indices of an image, kept in [-1, 1].

    Normalised differences lie there for positive reflectance; what noise near zero reflectance throws outside, or a
    zero denominator makes non-finite, is clamped (0/0 becomes 0), so that one dark pixel cannot drown a patch.

    Raises:
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

    def extra_repr(self) -> str:
        return ", ".join(self.names)
