"""Sensors, band names, wavelengths, RGB order.

Bands are names, never positions: Sentinel-2 files come as B, G, R, NIR ... or with B8A last, and a channel taken by its
position is the classic silent error.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Band -> (centre wavelength in nm, mean, standard deviation of top-of-atmosphere reflectance).
# Wavelengths: Sentinel-2A (ESA). Means and deviations: EuroSAT, 27,000 European chips, as torchgeo publishes them.
_SENTINEL2 = {
    "B01": (442.7, 0.1354, 0.0246),
    "B02": (492.4, 0.1118, 0.0333),
    "B03": (559.8, 0.1043, 0.0395),
    "B04": (664.6, 0.0948, 0.0594),
    "B05": (704.1, 0.1199, 0.0566),
    "B06": (740.5, 0.2000, 0.0861),
    "B07": (782.8, 0.2369, 0.1087),
    "B08": (832.8, 0.2297, 0.1118),
    "B8A": (864.7, 0.2594, 0.1232),
    "B09": (945.1, 0.0732, 0.0405),
    "B10": (1373.5, 0.0012, 0.0005),
    "B11": (1613.7, 0.1819, 0.1003),
    "B12": (2202.4, 0.1119, 0.0761),
}
# USGS band centres. B10 and B11 are thermal: brightness temperature in kelvin, not reflectance.
_LANDSAT8 = {
    "B1": 443.0, "B2": 482.0, "B3": 561.4, "B4": 654.6, "B5": 864.7, "B6": 1608.9, "B7": 2200.7, "B8": 589.5,
    "B9": 1373.4, "B10": 10895.0, "B11": 12005.0,
}  # fmt: skip
SENSORS: dict[str, dict[str, float]] = {
    "sentinel2": {name: row[0] for name, row in _SENTINEL2.items()},
    "landsat8": _LANDSAT8,
}
SENSORS["hls"] = SENSORS["sentinel2"]  # HLS S30 keeps Sentinel-2's names
_RGB = {"sentinel2": ("B04", "B03", "B02"), "landsat8": ("B4", "B3", "B2"), "hls": ("B04", "B03", "B02")}
_RGB_RANGE = {"red": (620, 690), "green": (510, 600), "blue": (440, 530)}  # nm, for sensor="custom"
THERMAL_FROM = 4000.0  # nm; longer waves are emitted by the ground, not reflected


@dataclass(frozen=True)
class BandSet:
    """The bands of an image, in the order of its channels.

    Attributes:
        sensor: one of ``SENSORS``, or ``"custom"``; names: of bands, one a channel.
        wavelengths: centre wavelengths in nm, one a channel; NaN for what is no reflectance (slope, radar).
        rgb: positions of red, green and blue.
    """

    sensor: str
    names: tuple[str, ...]
    wavelengths: tuple[float, ...]
    rgb: tuple[int, int, int]

    @property
    def beyond_rgb(self) -> tuple[int, ...]:
        """Positions of the other bands, in order."""
        return tuple(i for i in range(len(self.names)) if i not in self.rgb)

    @property
    def thermal(self) -> tuple[int, ...]:
        """Positions of thermal bands (kelvin)."""
        return tuple(i for i, nm in enumerate(self.wavelengths) if nm >= THERMAL_FROM)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of reflectance in each band, (C,) and (C,), before any data was seen.

        Sentinel-2's values, for other sensors those of the nearest Sentinel-2 band; thermal bands 290 K and 15 K.
        Fit your own with ``AdaptedViT.fit_normalization``.
        """
        mean, std = zip(*map(_usual, self.wavelengths), strict=True)
        return torch.tensor(mean), torch.tensor(std)

    def pooled(self, moments: Tensor) -> Tensor:
        """Sums over pixels of the bands beyond RGB, (C - 3,), summed over those that share statistics: none here."""
        return moments

    def to_json(self) -> dict:
        """Arguments of ``band_set``, as plain values."""
        names = dict(zip(self.names, self.wavelengths, strict=True)) if self.sensor == "custom" else list(self.names)
        return {"sensor": self.sensor, "bands": names}

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)


def _usual(nm: float) -> tuple[float, float]:
    """Mean and standard deviation of a band of which no image was seen."""
    if nm != nm:
        return 0.0, 1.0
    if nm >= THERMAL_FROM:
        return 290.0, 15.0
    # B10 (cirrus) is dark for its own reason, water vapour: only a band inside that window may borrow it.
    near = [row for band, row in _SENTINEL2.items() if band != "B10" or 1350 <= nm <= 1400]
    return min(near, key=lambda row: abs(row[0] - nm))[1:]


def band_set(bands: BandSet | Sequence[str] | Mapping[str, float], sensor: str = "sentinel2") -> BandSet:
    """Resolve band names of a sensor, one of ``SENSORS`` or ``"custom"``.

    ``bands``: names in channel order; for ``sensor="custom"`` a mapping name -> centre wavelength in nm, NaN for what
    is no reflectance. A ``BandSet`` is returned as it is. ValueError: unknown sensor or band, repeated band, or red,
    green or blue missing.
    """
    if isinstance(bands, BandSet):
        return bands
    if sensor == "custom":
        return _custom_band_set(bands)
    if sensor not in SENSORS:
        raise ValueError(f"unknown sensor {sensor!r}; choose from {', '.join(SENSORS)} or 'custom'")
    if isinstance(bands, str | Mapping):
        raise ValueError(f"bands must be a sequence of names such as {_RGB[sensor]}, got {bands!r}")
    names, table = tuple(bands), SENSORS[sensor]
    unknown = [name for name in names if name not in table]
    if unknown:
        padded = str(unknown[0]).upper().replace("B", "B0", 1)  # B8 is B08, not B8A
        near = [padded] if padded in table else difflib.get_close_matches(str(unknown[0]), table, n=1, cutoff=0.4)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"unknown {sensor} bands {unknown}{hint}; choose from {', '.join(table)}")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"bands {names} repeat {repeated}; each channel needs its own band")
    if missing := [name for name in _RGB[sensor] if name not in names]:
        raise ValueError(
            f"bands {names} lack {missing}: RGB models need red, green and blue, {', '.join(_RGB[sensor])}"
        )
    red, green, blue = (names.index(name) for name in _RGB[sensor])
    return BandSet(sensor, names, tuple(table[name] for name in names), (red, green, blue))


def _custom_band_set(bands: Sequence[str] | Mapping[str, float]) -> BandSet:
    if not isinstance(bands, Mapping):
        example = {"red": 665, "green": 560, "blue": 490, "nir": 833}
        raise ValueError(f"sensor='custom' needs a mapping to wavelengths in nm, such as {example}; got {bands!r}")
    names, wavelengths = tuple(bands), tuple(float(nm) for nm in bands.values())
    bad = {n: nm for n, nm in zip(names, wavelengths, strict=True) if not (300 <= nm <= 15000 or nm != nm)}
    if bad:
        raise ValueError(f"wavelengths {bad} are outside 300..15000 nm; give centre wavelengths in nanometres")
    rgb = []
    for colour, (low, high) in _RGB_RANGE.items():
        inside = [i for i, nm in enumerate(wavelengths) if low <= nm <= high]
        if not inside:
            raise ValueError(f"no {colour} band ({low}..{high} nm) among {dict(bands)}: RGB is needed")
        rgb.append(min(inside, key=lambda i: abs(wavelengths[i] - (low + high) / 2)))
    red, green, blue = rgb
    return BandSet("custom", names, wavelengths, (red, green, blue))
