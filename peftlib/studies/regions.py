"""Unseen regions: each run trains in some regions, and is tested there (split "test") and elsewhere ("unseen").

runs, metrics = study(execute)     # role "final"; split "rgb": how far the model moved
"""

from dataclasses import replace

import peftlib as pl
from peftlib.methods import METHODS
from peftlib.studies.main import PLANS
from peftlib.studies.protocol import Cell, Execute, Plan, Tables, joined, search, varied

HERE, ELSEWHERE = ["europe"], ["africa", "americas", "asia", "oceania"]
WEST, EAST = {"longitudes": [-180, 10]}, {"longitudes": [10, 180]}
SEEDS = (0, 1, 2)
_SCENES, _EUROSAT = PLANS["spectral_scenes"], PLANS["eurosat"]
# What is searched and trained on, and what is tested beside. Of the sample of 270 chips of EuroSAT the west is cut in
# folds, and the east's training part, which would else train, is tested on.
REGIONS: tuple[tuple[Plan, dict], ...] = (
    (
        replace(_SCENES, setting=varied(_SCENES.setting, data={"continents": HERE})),
        {"unseen": {"continents": ELSEWHERE}},
    ),
    (replace(_EUROSAT, setting=varied(_EUROSAT.setting, data=WEST)), {"unseen": EAST | {"split": "train"}}),
)


def cells() -> dict[str, Cell]:
    """Every method on EMB, the frozen one on RGB. Nearly all start as the pretrained model: training moved the rest."""
    return {name: (pl.RGB() if name == "frozen" else pl.EMB(), config()) for name, config in METHODS.items()}


def study(execute: Execute, regions: tuple = REGIONS, seeds: tuple = SEEDS) -> Tables:
    """Rates are searched where training is; then all methods on all seeds, each of which tests another fold."""
    tables = []
    for plan, elsewhere in regions:
        searched, best = search(execute, plan, cells())
        finals = [
            replace(one, seed=seed, init=seed, fold=seed % max(one.folds, 1), rgb_drift=True, **elsewhere)
            for one in best.values()
            for seed in seeds
        ]
        tables += [*searched, execute(finals)]
    return joined(*tables)
