"""Unseen regions: each run trains in some regions, and is tested there (split "test") and elsewhere ("unseen").

runs, metrics = study(execute)     # role "final"; split "rgb": how far the model moved
"""

from dataclasses import replace

import pandas as pd

import peftlib as pl
from peftlib.experiments.config import Experiment
from peftlib.methods import METHODS, Input, Method
from peftlib.studies.comparison import SETTINGS, Execute, joined, search, tries

HERE, ELSEWHERE = ["europe"], ["africa", "americas", "asia", "oceania"]
WEST, EAST = {"longitudes": [-180, 10]}, {"longitudes": [10, 180]}
SEEDS = (0, 1, 2)
_SCENES, _EUROSAT = SETTINGS["spectral_scenes"][0], SETTINGS["eurosat"][0]
# What is searched and trained on, and what is tested beside. Of the sample of 270 chips of EuroSAT the west is cut in
# folds, and the east's training part, which would else train, is tested on.
REGIONS: tuple[tuple[Experiment, dict], ...] = (
    (replace(_SCENES, data={**_SCENES.data, "continents": HERE}), {"unseen": {"continents": ELSEWHERE}}),
    (replace(_EUROSAT, data=WEST), {"unseen": EAST | {"split": "train"}}),
)


def cells() -> dict[str, tuple[Input, Method]]:
    """Every method on EMB, the frozen one on RGB. Nearly all start as the pretrained model: training moved the rest."""
    return {name: (pl.RGB() if name == "frozen" else pl.EMB(), config()) for name, config in METHODS.items()}


def study(execute: Execute, regions: tuple = REGIONS, seeds: tuple = SEEDS) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rates are searched where training is; then all methods on all seeds, each of which tests another fold."""
    places = range(len(regions))
    planned = {(place, cell): tries(regions[place][0], *pair) for place in places for cell, pair in cells().items()}
    *searched, best = search(execute, planned)
    finals = [
        replace(one, seed=seed, init=seed, fold=seed % max(one.folds, 1), rgb_drift=True, **regions[place][1])
        for (place, _), one in best.items()
        for seed in seeds
    ]
    return joined(searched, execute(finals))
