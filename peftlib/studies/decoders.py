"""Decoders and metadata, the comparison study's other two questions (Marti-Escofet et al., arXiv 2504.17397).

runs, metrics = study(execute)     # roles "decoder", "metadata", "without metadata"
"""

from dataclasses import replace

import pandas as pd

from peftlib.experiments.config import Experiment
from peftlib.studies import comparison
from peftlib.studies.comparison import SETTINGS, Execute, joined, search, tries

CELLS = {name: comparison.CELLS[name] for name in ("EMB × Frozen", "Inflated × LoRA", "EMB × LoRA", "DEFLECT")}
DECODERS = ("linear", "unet", "upernet")
# A decoder that is trained from scratch wants more steps, and another rate than the linear one.
STEPS, LARGE_HEAD_LR = (500, 1500), 1e-3
SEEDS = (0, 1, 2)
# What each data set's images come with. Simulated scenes: a place on a continent, whose soils they have, and a day.
METADATA = {"spectral_scenes": ("location", "date"), "eurosat": ("location",)}


def study(execute: Execute, settings: dict[str, Experiment] | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rates are chosen with the linear decoder, without metadata; then come all decoders, and metadata."""
    settings = settings or {name: setting for name, (setting, _) in SETTINGS.items() if name in METADATA}
    planned = {(data, cell): tries(settings[data], *CELLS[cell]) for data in settings for cell in CELLS}
    *searched, best = search(execute, planned)
    finals = [one for (data, _), chosen in best.items() for one in (*_decoders(data, chosen), *_metadata(data, chosen))]
    folds = {data: max(setting.folds, 1) for data, setting in settings.items()}
    runs = [replace(one, seed=n, init=n, fold=n % folds[one.dataset]) for one in finals for n in SEEDS]
    return joined(searched, execute(runs))


def _decoders(data: str, chosen: Experiment) -> list[Experiment]:
    if data != "spectral_scenes":
        return []
    runs = [replace(chosen, role="decoder", decoder=name, steps=steps) for name in DECODERS for steps in STEPS]
    return [run if run.decoder == "linear" else replace(run, head_lr=LARGE_HEAD_LR) for run in runs]


def _metadata(data: str, chosen: Experiment) -> list[Experiment]:
    """With and without metadata, on the same images: scenes with a place are other scenes."""
    located = {"located": True} if data == "spectral_scenes" else {}
    plain = replace(chosen, role="without metadata", data={**chosen.data, **located})
    return [plain, replace(plain, role="metadata", metadata=METADATA[data])]
