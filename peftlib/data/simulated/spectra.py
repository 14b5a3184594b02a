"""Measured spectra, what water does to them, and how sensors see them.

Spectra come from ``earthlib``: soils of the ICRAF-ISRIC library with coordinates, urban surfaces, char and litter by
ASD, canopies by PROSAIL; 180 samples, 400 to 2450 nm without the bands of water vapour. Responses come from ``pyrsr``.
"""

import re
from functools import cache

import numpy as np

from peftlib.sensors.bands import SENSORS

HYPERSPECTRAL = "hyperspectral"
_SATELLITES = {  # sensor -> (satellite, instrument, bands): thermal and panchromatic ones are left out
    "sentinel2": ("Sentinel-2A", "MSI", tuple(SENSORS["sentinel2"])),
    "hls": ("Sentinel-2A", "MSI", ("B02", "B03", "B04", "B8A", "B11", "B12")),
    "landsat8": ("Landsat-8", "OLI_TIRS", ("B1", "B2", "B3", "B4", "B5", "B6", "B7")),
}
# Boxes of (south, north, west, east) in degrees; the first that holds a place has it. Coarse, and stated.
CONTINENTS = {
    "europe": (36.5, 72, -25, 40),
    "africa": (-36, 36.5, -20, 52),
    "asia": (-11, 75, 40, 180),
    "oceania": (-50, -11, 110, 180),
    "americas": (-56, 75, -175, -30),
}
# Absorption of pure water per metre: Pope & Fry (1997) up to 700 nm, Hale & Querry (1973) beyond, read at a few knots.
_WATER = {
    400: 0.0066, 450: 0.0092, 500: 0.0204, 550: 0.0565, 600: 0.222, 650: 0.34, 700: 0.624, 750: 2.6, 800: 1.96,
    850: 4.33, 900: 6.79, 950: 38.8, 1000: 36.3, 1100: 17, 1200: 104, 1400: 1235, 1600: 672, 1800: 803, 2000: 6910,
    2200: 1650, 2450: 6000,
}  # fmt: skip
_REFRACTION = 1.33


@cache
def library():
    """All spectra (n, 180), their wavelengths (180,) in nm, and a table of what they are, with ``continent``."""
    from earthlib import config, read

    spectra = read.spectral_library(config.full_endmember_path)
    table = config.full_metadata.copy()
    table["continent"] = [_continent(lat, lon) for lat, lon in zip(table["LAT"], table["LON"], strict=True)]
    return np.asarray(spectra.data, dtype=np.float64), 1000 * np.asarray(spectra.sensor.band_centers), table


def _continent(latitude: float, longitude: float) -> str:
    if latitude == longitude == 0:  # how the library writes an unknown place
        return ""
    for name, (south, north, west, east) in CONTINENTS.items():
        if south <= latitude <= north and west <= longitude <= east:
            return name
    return ""


def measured(*kinds: str, source: str | None = None, continents: tuple[str, ...] = ()) -> np.ndarray:
    """Spectra (n, 180) of surfaces by earthlib's third level (``soil``, ``char``, ``litter``, ``road``, ...).

    source: of one library only; continents: some of ``CONTINENTS``, none is everywhere, unknown places included.
    """
    spectra, _, table = library()
    chosen = table["LEVEL_3"].isin(kinds)
    if source is not None:
        chosen &= table["SOURCE"] == source
    if continents:
        chosen &= table["continent"].isin(continents)
    return spectra[chosen.to_numpy()]


@cache
def canopies() -> tuple[np.ndarray, np.ndarray]:
    """PROSAIL canopies (2000, 180), and their leaf area index, leaf mass (g/cm²), chlorophyll (µg/cm²), structure."""
    _, _, table = library()
    names = table["NAME"][table["LEVEL_3"] == "canopy"]
    parameters = [[float(v) for v in re.findall(r"[A-Z]-([\d.]+(?:e\+\d+)?)", name)] for name in names]
    return measured("canopy"), np.array(parameters)


@cache
def response(sensor: str) -> tuple[dict[str, float], np.ndarray]:
    """Bands of a sensor (name -> centre in nm) and the matrix (bands, 180) that turns spectra into band reflectance.

    ``hyperspectral`` is the spectrum itself, 180 bands of 10 nm. Raises ValueError for an unknown sensor.
    """
    _, wavelengths, _ = library()
    if sensor == HYPERSPECTRAL:
        return {f"{nm:.0f}nm": float(nm) for nm in wavelengths}, np.eye(len(wavelengths))
    if sensor not in _SATELLITES:
        raise ValueError(f"unknown sensor {sensor!r}; choose from {(*_SATELLITES, HYPERSPECTRAL)}")
    from pyrsr import RSR

    satellite, instrument, bands = _SATELLITES[sensor]
    measured_response = RSR(satellite, instrument)
    nm = np.arange(wavelengths[0], wavelengths[-1] + 1)
    to_nm = np.stack([np.interp(nm, wavelengths, sample) for sample in np.eye(len(wavelengths))], axis=1)
    rows = []
    for band in bands:
        name = band[1:].lstrip("0")  # pyrsr writes 1 for B01
        weight = np.interp(nm, measured_response.rsrs_wvl, measured_response.rsrs[name], left=0, right=0)
        rows.append(weight / weight.sum() @ to_nm)
    return {band: SENSORS[sensor][band] for band in bands}, np.stack(rows)


@cache
def water_absorption() -> np.ndarray:
    """Of pure water at the samples of a spectrum, per metre."""
    return np.exp(np.interp(library()[1], list(_WATER), np.log(list(_WATER.values()))))


def wetted(dry: np.ndarray, film: np.ndarray) -> np.ndarray:
    """A wet surface: light turned back at the inner side of a water film (Ångström 1925) and absorbed by it twice.

    dry: (n, 180) reflectance; film: (n, 1) thickness in mm.
    """
    trapped = dry / (_REFRACTION**2 * (1 - dry) + dry)
    return trapped * np.exp(-2 * water_absorption() * film * 1e-3)


def flooded(ground: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Ground under clear water, with 2% of the light turned back at the surface. depth: (n, 1) in mm."""
    return 0.02 + 0.96 * wetted(ground, depth)


def open_water(sediment: np.ndarray, dissolved: np.ndarray) -> np.ndarray:
    """Deep water: R = 0.33 b_b / (a + b_b) (Gordon et al. 1975), half of which passes the surface.

    sediment: (n, 1) in g/m³, backscattering 0.01 m²/g at 550 nm; dissolved: (n, 1) absorption at 440 nm per metre.
    """
    nm = library()[1]
    back = 0.0008 * (500 / nm) ** 4.3 + 0.01 * sediment * (550 / nm) ** 0.6
    absorbed = water_absorption() + dissolved * np.exp(-0.015 * (nm - 440))
    return 0.01 + 0.5 * 0.33 * back / (absorbed + back)
