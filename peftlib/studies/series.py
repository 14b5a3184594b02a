"""Time series: ways to give an RGB-pretrained ViT four dates of fields that no single date tells apart.

runs, metrics = study(execute)     # role: the name of the approach; of searches "search"
"""

from collections.abc import Sequence
from dataclasses import replace

import peftlib as pl
from peftlib.data.simulated.phenology import DAYS
from peftlib.deflect.time_series import SeriesEMB, series_bands
from peftlib.methods.lora import LoRA
from peftlib.sensors.bands import SENSORS
from peftlib.studies.main import PLANS
from peftlib.studies.protocol import Cell, Execute, Tables, joined, search, varied

WITHOUT_DAYS = {"bands": series_bands(tuple(SENSORS["sentinel2"]), len(DAYS), day=False).names}
_LORA, _DEFLECT = (pl.Inflated(), LoRA()), (pl.EMB(), pl.Deflect())
_SET, _SEQUENCE = (SeriesEMB(order=order) for order in ("set", "sequence"))
# Name -> input and method, view of the data, further fields; from those that see least to those that see most.
APPROACHES: dict[str, tuple[Cell, str, dict]] = {
    "LoRA, RGB of the best date": ((pl.RGB(), LoRA()), "best", {}),
    "LoRA, the best date": (_LORA, "best", {}),
    "DEFLECT, the best date": (_DEFLECT, "best", {}),
    "LoRA, mean over dates": (_LORA, "each", {}),
    "DEFLECT, mean over dates": (_DEFLECT, "each", {}),
    "DEFLECT, set without days": ((_SET, pl.Deflect()), "series", WITHOUT_DAYS),
    "LoRA, mean over dates with days": (_LORA, "each", {"metadata": ("date",)}),
    "DEFLECT, mean over dates with days": (_DEFLECT, "each", {"metadata": ("date",)}),
    "LoRA, dates as bands": (_LORA, "series", {}),
    "DEFLECT, sequence of dates": ((_SEQUENCE, pl.Deflect()), "series", {}),
    "DEFLECT, set of dates": ((_SET, pl.Deflect()), "series", {}),
}
# What can be known of the six calendars, in %: by red, green and blue; by one date; by dates without order; by all.
_KNOWN = (100 / 6, *(200 / 6,) * 2, *(50.0,) * 3, *(100.0,) * 5)
KNOWABLE = dict(zip(APPROACHES, _KNOWN, strict=True))


def study(execute: Execute, seeds: Sequence[int] = (0, 1, 2)) -> Tables:
    """Rates by validation loss: one date leaves several classes equally likely, and which is named is chance."""
    scenes, tables = replace(PLANS["spectral_scenes"].setting, dataset="phenology"), []
    for name, (cell, view, fields) in APPROACHES.items():
        setting = varied(scenes, data={"view": view}, **fields)
        plan = replace(PLANS["spectral_scenes"], setting=setting)
        searched, best = search(execute, plan, {name: cell}, "loss")
        tables += [*searched, execute([replace(best[name], role=name, seed=seed, init=seed) for seed in seeds])]
    return joined(*tables)
