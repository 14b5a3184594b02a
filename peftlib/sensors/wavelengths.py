"""The spectrum on wavelengths of its own: what lets one encoder read sensors with different bands.

A sensor samples the reflectance spectrum r(λ) at its bands. Between them we interpolate, and a fixed grid of knots
reads the result, each knot k through a hat h_k that reaches to its neighbours:

    r_k = ∫ h_k(λ) r̂(λ) dlogλ / ∫ h_k(λ) dlogλ = Σ_b R_kb r_b,    r̂ = linear interpolation of r_b over log λ

R follows from the bands' centres alone, and each of its rows sums to one: this is a quadrature, in which a band counts
for the share of the spectrum that it stands for. Many narrow bands are averaged, few broad ones interpolated; what
reads the r_k needs not know how many there were. A linear layer on them has for each band the weight Σ_k w_k R_kb: a
learned piecewise linear function of wavelength times the band's share.
"""

import numpy as np
import torch
from torch import Tensor

from peftlib.sensors.bands import BandSet

# nm. Even in log λ: features widen with wavelength, and a step of 13% keeps red, red edge and near infrared apart.
KNOTS = tuple(np.geomspace(400.0, 2500.0, 16).round(1).tolist())
# nm. Water vapour hides the ground there: such a band measures the air (Sentinel-2's B09 and B10), and what is
# interpolated through it would be the reflectance of nothing.
ABSORBED = ((925.0, 965.0), (1350.0, 1450.0), (1800.0, 1950.0))
_FINE = np.log(np.geomspace(400.0, 2500.0, 4096))  # where integrals are summed


def surface_bands(bands: BandSet) -> tuple[int, ...]:
    """Positions of the bands that see the ground in reflected light: neither thermal nor inside ``ABSORBED``."""

    def sees(nm: float) -> bool:
        return nm <= KNOTS[-1] and not any(low <= nm <= high for low, high in ABSORBED)

    return tuple(i for i, nm in enumerate(bands.wavelengths) if sees(nm))


def resampling(bands: BandSet) -> Tensor:
    """R, the matrix (knots, C) that turns reflectance in all bands, red, green and blue too, into that at ``KNOTS``.

    Bands of one wavelength share a weight; beyond the first and the last band the spectrum is flat. ValueError: no band
    beyond RGB that sees the ground in reflected light; channels without a wavelength.
    """
    if bands.sensor == "custom" and (none := [n for n, nm in zip(bands, bands.wavelengths, strict=True) if nm != nm]):
        raise ValueError(f"spectral='wavelengths' cannot read {none}, which have none; choose 'bands'")
    used = surface_bands(bands)
    if not set(used) & set(bands.beyond_rgb):
        hidden = f"{ABSORBED}, where water vapour hides the ground"
        raise ValueError(f"{bands.names} have no band beyond RGB up to {KNOTS[-1]:g} nm and outside {hidden}")
    centres, which = np.unique([bands.wavelengths[i] for i in used], return_inverse=True)
    hats = np.stack([np.interp(_FINE, np.log(KNOTS), one) for one in np.eye(len(KNOTS))])
    spectra = np.stack([np.interp(_FINE, np.log(centres), one) for one in np.eye(len(centres))])  # of each band alone
    weight = hats @ spectra.T / hats.sum(1, keepdims=True)
    matrix = np.zeros((len(KNOTS), len(bands)))
    matrix[:, used] = (weight / np.bincount(which))[:, which]
    return torch.from_numpy(matrix).float()
