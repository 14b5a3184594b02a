"""Maps of parcels: fields in rows, patches with soft borders, a river, a road, a burn scar."""

from functools import cache

import numpy as np


def waves(draw: np.random.Generator, side: int, longest: float = 1.0) -> np.ndarray:
    """A smooth random field (side, side), mean 0 and deviation 1 over many. longest: its longest waves, in sides."""
    bank = _bank(side, longest)
    top, left = draw.integers(2 * side, size=2)
    field = bank[draw.integers(len(bank)), top : top + side, left : left + side]
    return field.T if draw.random() < 0.5 else field


@cache
def _bank(side: int, longest: float, count: int = 8) -> np.ndarray:
    """Fields (count, 3 side, 3 side) to cut from: noise whose amplitude falls with frequency, as terrain's does."""
    draw = np.random.default_rng(0)
    noise = np.fft.rfft2(draw.standard_normal((count, 2 * side, 2 * side)))
    frequency = 2 * side * np.hypot(np.fft.fftfreq(2 * side)[:, None], np.fft.rfftfreq(2 * side)[None])
    amplitude = np.where(frequency >= 2 / longest, np.maximum(frequency, 1) ** -2.5, 0)  # 2: waves in two sides
    fields = np.fft.irfft2(noise * amplitude, (2 * side, 2 * side))
    fields /= fields.std((1, 2), keepdims=True)
    return np.tile(fields, (1, 2, 2))[:, : 3 * side, : 3 * side].astype(np.float32)


def parcels(draw: np.random.Generator, side: int, pixel: float = 1.0) -> np.ndarray:
    """Parcel numbers (side, side) from 0. pixel: samples a pixel of the final image.

    Parcel sizes are log-normal, as those of fields are: their median side is 20 pixels. Half of the maps are fields in
    rows, half are patches around random points.
    """
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    bend = 2 * pixel * waves(draw, side, 0.5)
    median = 20 * pixel
    if draw.random() < 0.5:
        angle = draw.uniform(0, np.pi)
        u = rows * np.cos(angle) + columns * np.sin(angle) + bend
        v = columns * np.cos(angle) - rows * np.sin(angle)
        across = np.searchsorted(_edges(draw, u, median), u.ravel()).reshape(side, side)
        number = np.zeros((side, side), dtype=np.int64)
        for row in range(across.max() + 1):
            inside = across == row
            number[inside] = 100 * row + np.searchsorted(_edges(draw, v, median), v[inside])
        return np.unique(number, return_inverse=True)[1].reshape(side, side)
    count = max(2, draw.poisson((side / median) ** 2 * 1.3))
    points = draw.uniform(0, side, (count, 2)).astype(np.float32)
    weight = (median * draw.lognormal(0, 0.3, count)).astype(np.float32) ** 2
    near = [(rows + bend - y) ** 2 + (columns + bend.T - x) ** 2 - w for (y, x), w in zip(points, weight, strict=True)]
    return np.argmin(near, axis=0)


def _edges(draw: np.random.Generator, along: np.ndarray, median: float) -> np.ndarray:
    low, high = float(along.min()), float(along.max())
    widths = median * draw.lognormal(0, 0.35, int((high - low) / median * 2) + 4)
    return low + np.cumsum(widths) - draw.uniform(0, median)


def line(draw: np.random.Generator, side: int, width: float, winding: float) -> np.ndarray:
    """A band (side, side) of True across the map: straight for a road, winding for a river."""
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    angle = draw.uniform(0, np.pi)
    off = (rows - side / 2) * np.cos(angle) + (columns - side / 2) * np.sin(angle) + draw.uniform(-0.3, 0.3) * side
    return np.abs(off + winding * waves(draw, side, 2.0)) < width / 2


def blob(draw: np.random.Generator, side: int, radius: float) -> np.ndarray:
    """A patch (side, side) of True with a ragged border, as fires leave it."""
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    y, x = draw.uniform(0.2, 0.8, 2) * side
    return np.hypot(rows - y, columns - x) < radius * (1 + 0.35 * waves(draw, side, 0.6))
