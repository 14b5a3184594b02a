"""A time series as one image, so that all that takes images takes it: loaders, crops, methods, prediction.

    [ red, green, blue of the best date | bands and day of date 1 | bands and day of date 2 | ... ]

    x = torch.stack([stack(images, days, bands) for images, days in fields])
    model = pl.adapt(vit, pl.Deflect(), series_bands(bands, dates=4))

The pretrained patch embedding sees the best date. DEFLECT's encoder reads all dates as a set or as a sequence
(``Deflect(series=...)``); methods that inflate the patch embedding read them as so many more bands.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from peftlib.model.metadata import YEAR
from peftlib.sensors.bands import DAY, BandSet, band_set


def series_bands(bands: Sequence[str], dates: int, sensor: str = "sentinel2", day: bool = True) -> tuple[str, ...]:
    """Names of the channels of a time series, for ``adapt``: ``B04 B03 B02``, then ``B02@1 ... cos@1 sin@1 B02@2 ...``

    Args:
        bands: of each date, official names of the sensor.
        dates: how many there are.
        day: whether the day of the year of each date is there as well, as two channels.

    Raises:
        ValueError: unknown bands, or fewer than one date.
    """
    if dates < 1:
        raise ValueError(f"a time series of {dates} dates; it takes at least 1")
    one = band_set(bands, sensor)
    each = (*one.names, *(DAY if day else ()))
    names = [one.names[i] for i in one.rgb] + [f"{name}@{date + 1}" for date in range(dates) for name in each]
    return band_set(names, sensor).names


def stack(images: Tensor, days: Sequence[float], bands: Sequence[str], sensor: str = "sentinel2") -> Tensor:
    """The dates of a place -> one image with the channels of ``series_bands``.

    Args:
        images: (T, C, H, W) reflectance; NaN where a date has no data.
        days: of the year, one a date.
        bands, sensor: of each date, as for ``adapt``.

    Returns:
        (3 + T (C + 2), H, W).

    Raises:
        ValueError: another number of days than of images, or of bands than of channels.
    """
    one = band_set(bands, sensor)
    if images.ndim != 4 or len(images) != len(days) or images.shape[1] != len(one):
        raise ValueError(
            f"images {tuple(images.shape)} with {len(days)} days and bands {one.names}; need (T, C, H, W), "
            "T days and C bands"
        )
    angles = 2 * math.pi * torch.as_tensor(days, dtype=images.dtype) / YEAR
    day = torch.stack([(1 + angles.cos()) / 2, (1 + angles.sin()) / 2], dim=1)  # (T, 2), in [0, 1] as reflectance is
    day = day[..., None, None].expand(-1, -1, *images.shape[2:])
    colours = images[best_date(images, one), list(one.rgb)]
    return torch.cat([colours, torch.cat([images, day], dim=1).flatten(0, 1)])


def best_date(images: Tensor, bands: BandSet) -> int:
    """Which date to show the pretrained model: that with most valid pixels, of equals the one with least blue light.

    Haze and thin clouds scatter blue light into the picture.

    Args:
        images: (T, C, H, W) reflectance, with NaN where there is none.
        bands: of each date.
    """
    known = torch.isfinite(images).all(dim=1).flatten(1)  # (T, pixels)
    blue = torch.where(known, images[:, bands.rgb[2]].flatten(1), 0.0).sum(1) / known.sum(1).clamp_min(1)
    most = known.sum(1) == known.sum(1).max()
    return int(torch.where(most, blue, math.inf).argmin())
