"""How stored values become reflectance: channels, scale and offset, no data, odd values. Kept with an adapter."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peftlib.data.dataset import opened
from peftlib.sensors.bands import THERMAL_FROM, BandSet
from peftlib.sensors.reflectance import POSSIBLE, UNUSUAL_SHARE, USUAL

GRID = ("height", "width", "crs", "transform")  # of a rasterio profile
Box = tuple[int, ...]  # top, left, height, width in pixels; it may reach over the border


@dataclass(frozen=True)
class Reading:
    """reflectance = (stored value + offset) / scale, NaN for no data. All plain values, as files keep them.

    Attributes:
        names: of the bands of one file; channels: their numbers there, from 0; count: of its channels, 0 for any.
        scale, offset: one a band; fill: stored values without data, beside the one that a file declares.
        odd: ``"warn"`` clips values above reflectance and names the file; ``"error"`` leaves them to the checks.
        size: (H, W) in pixels of a training image.
        dates: of a series, YYYY-MM-DD, a file each; rgb_date: number of the one that RGB shows, or ``"best"``.
    """

    names: Sequence[str]
    channels: Sequence[int]
    scale: Sequence[float]
    offset: Sequence[float]
    fill: Sequence[float] = ()
    count: int = 0
    odd: str = "error"
    size: Sequence[int] = ()
    dates: Sequence[str] = ()
    rgb_date: int | str = -1

    def grid(self, paths: Sequence[Path]) -> dict:
        """``GRID`` and nodata of files. ValueError: they lie elsewhere than the first, or their channels do not fit."""
        found, nodata = [], None
        for path in paths:
            with opened(path) as file:
                count, profile, nodata = file.count, file.profile, file.nodata if nodata is None else nodata
            found.append({name: profile[name] for name in GRID})
            if self.count not in (0, count):
                cure = f"; channels=range({self.count}), say, numbers from 0" if count > self.count else ""
                raise ValueError(f"{path} has {count} bands, and {self.count} are named{cure}")
            if max(self.channels) >= count:
                raise ValueError(f"{path} has no channel {max(self.channels)}, only 0 to {count - 1}")
            if found[-1] != found[0]:
                raise ValueError(f"{path} lies elsewhere than {paths[0]}, or on another grid")
        return found[0] | {"nodata": nodata}

    def image(self, path: Path, box: Box, bands: BandSet) -> Tensor:
        """(C, h, w) reflectance of a window of a file; beyond the border by mirroring. Odd values are clipped.

        What is mostly huge, or often negative, stays so, for ``check_reflectance`` to refuse.
        """
        image = torch.from_numpy(read_window(path, self.channels, box))
        for fill in self.fill:
            image = torch.where(image == fill, torch.nan, image)
        scale, offset = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (self.scale, self.offset))
        image = (image + offset) / scale
        optical = [i for i, nm in enumerate(bands.wavelengths) if nm < THERMAL_FROM]
        known = image[optical][image[optical].isfinite()]
        odd = self.odd == "warn" and known.numel() and (known.max() > USUAL[1] or known.min() < USUAL[0])
        if odd and (known < USUAL[0]).float().mean() <= UNUSUAL_SHARE and known.median() <= POSSIBLE[1]:
            text = f"{path}: values outside {USUAL} (snow, clouds, glint?) are clipped; odd='error' refuses them"
            warnings.warn(text, stacklevel=2)
            image[optical] = image[optical].clamp(*USUAL)  # NaN stays
        return image


def days_of(dates: Sequence[str]) -> list[int]:
    """Days of the year of dates YYYY-MM-DD; those of a later year run on."""
    when = [date.fromisoformat(day) for day in dates]
    return [when[0].timetuple().tm_yday + (day - when[0]).days for day in when]


def per_band(name: str, value: float | Sequence[float], bands: BandSet) -> list[float]:
    """``scale`` or ``offset``, one number or one a band -> one a band; what is no reflectance stays as stored."""
    values, none = np.atleast_1d(value).astype(float).tolist(), [nm != nm for nm in bands.wavelengths]
    if len(values) == 1:
        values = [float(name == "scale") if no else values[0] for no in none]
    if len(values) != len(bands) or not all(map(math.isfinite, values)) or (name == "scale" and 0 in values):
        raise ValueError(f"{name}={value!r}; give one number, or one for each of {bands.names}, scale not 0")
    return values


def reading_of(kept: Mapping, bands: BandSet, names: Sequence[str] | None = None, **given: Any) -> Reading:
    """How a model's training files were read (``kept``; of other bands it is left aside), but for what is given.

    ``bands``: of a file for the model; ``names``: of all channels of the files to read, in their order; ``given``:
    scale, offset; None is what was kept, else 10000 and 0. Another value than was kept is a warning.
    """
    known = dict(kept) if list(kept.get("names", ())) == list(bands) else {}
    if names is not None:
        missing = [name for name in bands if name not in names]
        if missing or len(set(names)) < len(names):
            raise ValueError(f"bands={tuple(names)}; the model needs {bands.names}, each once; missing: {missing}")
        known |= {"names": list(bands), "channels": [list(names).index(name) for name in bands], "count": len(names)}
    elif not known:
        raise ValueError(f"the model keeps no reading of files with {bands.names}: name the image's bands=")
    for name, value in given.items():
        if value is not None or name not in known:
            values = per_band(name, {"scale": 1e4, "offset": 0.0}[name] if value is None else value, bands)
            if not np.allclose(known.setdefault(name, values), values):
                warnings.warn(f"{name}={value}; the model was trained on files with {known[name]}", stacklevel=3)
            known[name] = values
    return Reading(**known)


def read_window(path: Path, channels: Sequence[int], box: Box, outside: float | None = None) -> np.ndarray:
    """(channels, h, w) float32 of a window, NaN where the file declares no data; errors as of ``opened``.

    Beyond the border it is continued by mirroring; or it is ``outside``, and what is declared is as stored.
    """
    top, left, height, width = box
    with opened(path) as file:
        rows, columns = (max(top, 0), min(top + height, file.height)), (max(left, 0), min(left + width, file.width))
        values = file.read([c + 1 for c in channels], window=(rows, columns), masked=outside is None)
    with np.errstate(over="ignore"):  # a declared value may be float64's least
        values = values.astype(np.float32)
    border = ((0, 0), (rows[0] - top, top + height - rows[1]), (columns[0] - left, left + width - columns[1]))
    if outside is None:
        return np.pad(values.filled(np.nan), border, "symmetric")
    return np.pad(values, border, constant_values=outside)
