"""Metamers: pairs of covers that a camera cannot tell apart, made of measured spectra.

Each is a mixture (positive weights, a little more or less light on it) of measured spectra of its own class, and the
weights are solved for so that Sentinel-2's B04, B03 and B02 agree to 1e-4. By RGB alone the best score is a coin's.
"""

from functools import cache

import numpy as np
from torch import Tensor

from peftlib.data.simulated import spectra

PAIRS = {
    "canopy": ("healthy canopy", "stressed canopy"),
    "dry": ("bare soil", "dry grass"),
    "dark": ("char", "wet soil"),
    "flood": ("flooded", "dry dark cover"),
}
COUNT = 160  # of each pair
TOLERANCE = 1e-4  # in reflectance; the sensor's noise is twenty times that
LIGHT = (0.7, 1.3)  # how bright a mixture may be made, as slopes do


@cache
def pools(continents: tuple[str, ...] = ()) -> dict[str, tuple[np.ndarray, ...]]:
    """What the scenes of some continents are made of: pair -> spectra (n, 180) that its two members are mixed from.

    ``water`` and ``built`` have one kind each. Soils are those measured there. Canopies carry no coordinates:
    continents take them by leaf mass per area, thin leaves first in the order of ``CONTINENTS``, an assumption. Char,
    litter and built surfaces are the same everywhere.
    """
    draw = np.random.default_rng(0)
    soil = spectra.measured("soil", source="icraf-isric-soil-database", continents=continents)
    leaves, (lai, mass, chlorophyll, _) = spectra.canopies()[0], spectra.canopies()[1].T
    places = list(spectra.CONTINENTS)
    fifth = np.searchsorted(np.quantile(mass, np.linspace(0, 1, len(places) + 1)[1:-1]), mass, side="right")
    here = np.isin(fifth, [places.index(name) for name in continents or places])
    litter = spectra.measured("litter", "npv")
    sparse_or_yellow = leaves[here & ((lai <= 2) | (chlorophyll <= 18))]
    ground = np.concatenate([soil[draw.permutation(len(soil))[:800]], leaves[here][:400]])
    return {
        "canopy": (leaves[here & (chlorophyll >= 35) & (lai >= 3)], np.concatenate([sparse_or_yellow, litter])),
        "dry": (soil, litter),
        "dark": (spectra.measured("char"), spectra.wetted(soil, draw.uniform(0.1, 0.5, (len(soil), 1)))),
        "flood": (
            spectra.flooded(ground, draw.uniform(30, 300, (len(ground), 1))),
            spectra.measured("asphalt", "road", "parking_lot", "comp_shingle"),
        ),
        "water": (spectra.open_water(draw.uniform(0.5, 30, (200, 1)), draw.uniform(0.05, 1.0, (200, 1))),),
        "built": (spectra.measured("metal", "concrete_tile", "paint", "tile", "wood_shingle", "gravel"),),
    }


@cache
def metamers(continents: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Pair -> spectra (COUNT, 2, 180) float32: row i holds a metamer of each class. Takes about a second."""
    return {name: _pair(*pools(continents)[name]) for name in PAIRS}


def _pair(*members: np.ndarray) -> np.ndarray:
    """Mixtures of one class, drawn at random, and of the other, solved for: half the draws from either."""
    draw = np.random.default_rng(0)
    rgb = spectra.response("sentinel2")[1][[3, 2, 1]]
    colours = [member @ rgb.T for member in members]
    found: tuple[list, list] = ([], [])
    for attempt in range(400 * COUNT):
        drawn = attempt % 2
        if len(found[drawn]) >= COUNT * 3 // 4:  # one class may hold few colours of the other
            continue
        i = draw.choice(len(members[drawn]), 2)
        mixture = draw.dirichlet([1, 1]) @ members[drawn][i] * draw.uniform(0.8, 1.2)
        weights = _same_colour(colours[1 - drawn], rgb @ mixture, draw)
        if weights is not None:
            solved = weights @ members[1 - drawn]
            found[drawn].append((mixture, solved) if drawn == 0 else (solved, mixture))
            if len(found[0]) + len(found[1]) == COUNT:
                pairs = np.array(found[0] + found[1])
                return pairs[draw.permutation(COUNT)].astype(np.float32)
    raise ValueError(f"only {len(found[0]) + len(found[1])} of {COUNT} metamer pairs: too few spectra in this region")


def _same_colour(colours: np.ndarray, goal: np.ndarray, draw: np.random.Generator) -> np.ndarray | None:
    """Weights (n,) >= 0 of a mixture of colours (n, 3) that has the colour of the goal, or None."""
    from scipy.optimize import nnls

    chroma = colours / np.maximum(colours.sum(1, keepdims=True), 1e-6)
    near = np.argsort(((chroma - goal / max(goal.sum(), 1e-6)) ** 2).sum(1))[:150]
    chosen = draw.choice(near, min(40, len(near)), replace=False)
    # the last row asks for weights that sum to one
    rows = np.vstack([100 * colours[chosen].T, np.full(len(chosen), 0.1)])
    solved, _ = nnls(rows, np.append(100 * goal, 0.1))
    exact = np.abs(colours[chosen].T @ solved - goal).max() < TOLERANCE
    if not exact or not LIGHT[0] <= solved.sum() <= LIGHT[1]:
        return None
    weights = np.zeros(len(colours))
    weights[chosen] = solved
    return weights


def pair_accuracy(scores: Tensor, truth: Tensor) -> dict[str, float]:
    """Share of pixels on which the true member of a pair scores above the other, by pair, and their mean ``pairs``.

    scores: (B, 10, ...) of the classes of ``spectral_scenes``; truth: (B, ...) class numbers. 0.5 is a coin.
    """
    found = {}
    for i, name in enumerate(PAIRS):
        member = truth - 2 * i
        inside = (member == 0) | (member == 1)
        second = scores[:, 2 * i + 1] > scores[:, 2 * i]
        found[name] = float((second == (member == 1))[inside].float().mean())
    return found | {"pairs": float(np.mean(list(found.values())))}
