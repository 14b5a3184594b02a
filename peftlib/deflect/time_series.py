"""A time series as one image, so that all that takes images takes it: loaders, crops, methods, prediction.

    [ red, green, blue of the best date | bands and day of date 1 | bands and day of date 2 | ... ]

    bands = series_bands(("B02", "B03", "B04", "B08"), dates=4)
    x = torch.stack([stack(images, days, bands.one) for images, days in fields])
    model = pl.adapt(vit, pl.Deflect(), bands, input=SeriesEMB(order="set"))

The pretrained patch embedding sees the best date. ``SeriesEMB`` reads all dates as a set or as a sequence;
``pl.Inflated`` reads them as so many more bands.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peftlib.deflect.patch_embedding import EMB, PixelSetEncoder
from peftlib.methods.base import option
from peftlib.sensors.bands import BandSet, band_set
from peftlib.sensors.metadata import YEAR
from peftlib.sensors.reflectance import Reflectance
from peftlib.sensors.spectral_indices import SpectralIndices, available_indices

# Name, mean, deviation of what holds the day of the year, and of the decades since the first date.
_DAY = (("cos", 0.5, 0.35), ("sin", 0.5, 0.35), ("since", 0.05, 0.1))
DAYS: dict[bool | str, int] = {False: 0, True: 2, "since": 3}  # ``day`` -> how many of these there are


@dataclass(frozen=True)
class TimeSeriesBands(BandSet):
    """The channels of a time series. Made by ``series_bands``.

    ``one``: the bands of each date; ``dates``: how many there are; ``day``: as in ``series_bands``.
    """

    one: BandSet
    dates: int
    day: bool | str

    def statistics(self) -> tuple[Tensor, Tensor]:
        """As ``BandSet.statistics``; all dates share those of a band."""
        both = []
        for values, days in zip(self.one.statistics(), zip(*(row[1:] for row in _DAY), strict=True), strict=True):
            each = torch.cat([values, torch.tensor(days[: DAYS[self.day]])])
            both.append(torch.cat([values[list(self.one.rgb)], each.repeat(self.dates)]))
        return both[0], both[1]

    def pooled(self, moments: Tensor) -> Tensor:
        """Dates are more pixels of a band: sums over pixels, (T c,), summed over dates."""
        return moments.view(self.dates, -1).sum(0).repeat(self.dates)

    def to_json(self) -> dict:
        """Arguments of ``series_bands``, as plain values."""
        return self.one.to_json() | {"dates": self.dates, "day": self.day}


def series_bands(
    bands: BandSet | Sequence[str] | Mapping[str, float], dates: int, sensor: str = "sentinel2", day: bool | str = True
) -> TimeSeriesBands:
    """The channels of a time series of so many dates, for ``adapt``. ValueError: unknown bands or ``day``, or no date.

    Args:
        bands: of each date, official names of the sensor.
        day: whether the day of the year of each date is there as well, as two channels; ``"since"`` adds the time since
            the first date, without which a set cannot tell one season of two years from each other.
    """
    if dates < 1 or day not in DAYS:
        raise ValueError(f"a time series of {dates} dates with day={day!r}; it takes at least 1, day one of {[*DAYS]}")
    one = band_set(bands, sensor)
    each = [*zip(one.names, one.wavelengths, strict=True), *((name, math.nan) for name, *_ in _DAY[: DAYS[day]])]
    channels = [(one.names[i], one.wavelengths[i]) for i in one.rgb]
    channels += [(f"{name}@{date + 1}", nm) for date in range(dates) for name, nm in each]
    names, wavelengths = zip(*channels, strict=True)
    return TimeSeriesBands(one.sensor, names, wavelengths, (0, 1, 2), one, dates, day)


def stack(
    images: Tensor, days: Sequence[float], bands: BandSet | Sequence[str], sensor: str = "sentinel2",
    day: bool | str = True, rgb: int | str = "best",
) -> Tensor:  # fmt: skip
    """The dates of a place -> one image with the channels of ``series_bands``.

    Args:
        images: (T, C, H, W) reflectance; NaN where a date has no data.
        days: of the year, one a date; those of a later year run on.
        bands, sensor: of each date, as for ``adapt``; day: as in ``series_bands``.
        rgb: number of the date that the pretrained model sees, or ``"best"``: ``best_date``.

    Returns:
        (3 + T (C + 2), H, W); C + 3 with ``day="since"``, C without days. ValueError: numbers that do not fit.
    """
    one = band_set(bands, sensor)
    if images.ndim != 4 or len(images) != len(days) or images.shape[1] != len(one):
        raise ValueError(f"images {tuple(images.shape)}, {len(days)} days, {one.names}; need (T, C, H, W), T and C")
    number = torch.as_tensor(days, dtype=images.dtype)
    angles = 2 * math.pi * number / YEAR
    known = [(1 + angles.cos()) / 2, (1 + angles.sin()) / 2, (number - number[0]) / (10 * YEAR)]  # as in _DAY
    when = torch.stack(known, dim=1)[:, : DAYS[day], None, None].expand(-1, -1, *images.shape[2:])
    colours = images[best_date(images, one) if rgb == "best" else int(rgb), list(one.rgb)]
    return torch.cat([colours, torch.cat([images, when], dim=1).flatten(0, 1)])


def best_date(images: Tensor, bands: BandSet) -> int:
    """Which date to show the pretrained model: that with most valid pixels; ties go to the one with least blue light.

    Haze and thin clouds scatter blue light into the picture.

    images: (T, C, H, W) reflectance, NaN where there is none; bands: of each date.
    """
    known = torch.isfinite(images).all(dim=1).flatten(1)  # (T, pixels)
    blue = torch.where(known, images[:, bands.rgb[2]].flatten(1), 0.0).sum(1) / known.sum(1).clamp_min(1)
    most = known.sum(1) == known.sum(1).max()
    return int(torch.where(most, blue, math.inf).argmin())


@dataclass(frozen=True)
class SeriesEMB(EMB):
    """EMB of a time series: s is that of one date, its day included.

    Attributes:
        order: ``"set"``: f reads each date of a pixel, and a patch pools over pixels and dates, so their order means
            nothing and a date without data is one less; ``"sequence"``: f reads all dates of a pixel side by side.
    """

    name, label = "emb_series", "EMB of dates"
    order: str = option("set", other="sequence", choices=("set", "sequence"))
    spectral: str = option("bands", other="bands", choices=("bands",))  # the grid of wavelengths is that of one date

    def inject(self, vit: VisionTransformer, bands: BandSet) -> nn.Module:
        if not isinstance(bands, TimeSeriesBands):
            raise ValueError(f"SeriesEMB reads a time series (series_bands), and bands {bands.names} are of one image")
        indices = available_indices(bands.one) if self.indices == "auto" else tuple(self.indices)
        channels = len(bands.one) + DAYS[bands.day] + len(indices)
        sequence = self.order == "sequence"
        return SeriesEncoder(
            bands.dates, sequence, SpectralIndices(indices, bands.one), channels * (bands.dates if sequence else 1),
            vit.embed_dim, vit.patch_embed.patch_size, self,
        ).to(vit.patch_embed.proj.weight)  # fmt: skip


class SeriesEncoder(PixelSetEncoder):
    """A pixel-set encoder whose sets are pixels of all dates, or pixels with all dates."""

    def __init__(self, dates: int, sequence: bool, *arguments):
        super().__init__(*arguments)
        self.dates, self.sequence = dates, sequence
        self.set_size *= 1 if sequence else dates

    def members(self, reflectance: Reflectance, x: Tensor) -> tuple[Tensor, Tensor | None]:
        beyond, filled = (
            t.unflatten(1, (self.dates, -1)).flatten(0, 1)
            for t in (reflectance.beyond(x), reflectance.filled(x)[:, 3:])
        )
        s, valid = torch.cat([beyond, self.indices(filled)], dim=1), reflectance.valid(x)  # s: (B T, c, H, W)
        if valid is not None:
            valid = valid[:, 3:].unflatten(1, (self.dates, -1)).all(dim=2).to(x.dtype)  # (B, T, H, W)
            valid = valid.amax(1, keepdim=True) if self.sequence else valid.flatten(0, 1)[:, None]
        if self.sequence:
            s = s.unflatten(0, (-1, self.dates)).flatten(1, 2)
        return self.in_cells(s), None if valid is None else self.in_cells(valid)

    def in_cells(self, x: Tensor) -> Tensor:
        x = super().in_cells(x)
        if self.sequence:
            return x
        return x.unflatten(0, (-1, self.dates)).movedim(1, 3).flatten(3, 4)  # dates are more pixels of a cell
