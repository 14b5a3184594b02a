"""Unseen regions: each run trains in some regions, and is tested there (split "test") and elsewhere ("unseen").

runs, metrics = study(execute)     # roles "final", "rate"; split "rgb": how far the model moved
"""

from collections.abc import Mapping
from typing import Any

from peftlib.studies.main import PLANS, PRIMARY
from peftlib.studies.protocol import FACTOR, Execute, Plan, Tables, final_runs, joined, search, varied

CELLS = {
    name: PRIMARY[name]
    for name in (
        *("RGB × LoRA", "RGB × Full fine-tuning", "Inflated × LoRA", "EMB × Frozen", "EMB × LoRA", "DEFLECT"),
        "DEFLECT (constrain=False)",
    )
}
# Data set -> options of the data that train, and of those that are tested beside. Elsewhere soils and canopies are
# others, and the air is hazier than it ever is in Europe's scenes. Of EuroSAT's sample of 270 chips the west is cut in
# folds, and the east's training part, which would else train, is tested on.
REGIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "spectral_scenes": (
        {"continents": ["europe"]},
        {"continents": ["africa", "americas", "asia", "oceania"], "haze": 0.1},
    ),
    "eurosat": ({"longitudes": [-180, 10]}, {"longitudes": [10, 180], "split": "train"}),
}
# How far a model moves, against the learning rate: where a run is cheapest, and times the chosen rate.
MOVED, PLACE = ("EMB × LoRA", "DEFLECT", "DEFLECT (constrain=False)"), "eurosat"
TIMES = (FACTOR**-2, 1 / FACTOR, FACTOR)


def study(execute: Execute, plans: Mapping[str, Plan] = PLANS) -> Tables:
    """Rates are those of the main study, chosen on validation images of all regions, for all that is compared."""
    tables = []
    for name in [name for name in REGIONS if name in plans]:
        here, elsewhere = REGIONS[name]
        _, best = search(execute, plans[name], CELLS)
        trained = {cell: varied(one, data=here, unseen=elsewhere, rgb_drift=True) for cell, one in best.items()}
        few = plans[name].first_finals
        runs = final_runs(trained, few)
        if name == PLACE:
            rates = {(n, by): varied(trained[n], lr=trained[n].lr * by) for n in MOVED for by in TIMES}
            runs += final_runs(rates, few, role="rate")
        tables.append(execute(runs))
    return joined(*tables)
