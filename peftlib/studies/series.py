"""Time series: ways to give an RGB-pretrained ViT four dates of fields, of which no single date is enough.

runs, metrics = study(execute)     # role: the name of the approach; of searches "search"
"""

from collections.abc import Sequence
from dataclasses import replace

import peftlib as pl
from peftlib.data.simulated.phenology import DAYS
from peftlib.deflect.time_series import SeriesEMB, series_bands
from peftlib.sensors.bands import SENSORS
from peftlib.studies.main import PLANS
from peftlib.studies.protocol import Cell, Execute, Plan, Tables, final_runs, joined, search, varied

STEPS = 500
WITHOUT_DAYS = {"bands": series_bands(tuple(SENSORS["sentinel2"]), len(DAYS), day=False).names}
WITH_DAYS = {"metadata": ("date",)}
_LORA, _DEFLECT = (pl.Inflated(), pl.LoRA()), (pl.EMB(), pl.Deflect())
_SET, _SEQUENCE = (SeriesEMB(order=order) for order in ("set", "sequence"))
# Name -> input and method, view of the data, further fields, and how many % of the six calendars can be known by that
# view: red, green and blue say nothing, one date makes two groups, dates without their days make three.
APPROACHES: dict[str, tuple[Cell, str, dict, float]] = {
    "LoRA, RGB of the best date": ((pl.RGB(), pl.LoRA()), "best", {}, 100 / 6),
    "DEFLECT, the best date": (_DEFLECT, "best", {}, 200 / 6),
    "DEFLECT, set without days": ((_SET, pl.Deflect()), "series", WITHOUT_DAYS, 50.0),
    "LoRA, mean over dates with days": (_LORA, "each", WITH_DAYS, 100.0),
    "DEFLECT, mean over dates with days": (_DEFLECT, "each", WITH_DAYS, 100.0),
    "LoRA, dates as bands": (_LORA, "series", {}, 100.0),
    "LoRA, set of dates": ((_SET, pl.LoRA()), "series", {}, 100.0),
    "DEFLECT, sequence of dates": ((_SEQUENCE, pl.Deflect()), "series", {}, 100.0),
    "DEFLECT, set of dates": ((_SET, pl.Deflect()), "series", {}, 100.0),
}


def study(execute: Execute, plan: Plan = PLANS["spectral_scenes"], names: Sequence[str] = tuple(APPROACHES)) -> Tables:
    """Rates by validation loss: one date leaves several classes equally likely, and which is named is chance."""
    scenes, tables = replace(plan.setting, dataset="phenology", steps=min(STEPS, plan.setting.steps)), []
    for name in names:
        cell, view, fields, _ = APPROACHES[name]
        own = replace(plan, setting=varied(scenes, data={"view": view}, **fields))
        searched, best = search(execute, own, {name: cell}, "loss")
        tables += [*searched, execute(final_runs(best, plan.first_finals, role=name))]
    return joined(*tables)
