"""Decoders and metadata, the comparison study's other two questions (Marti-Escofet et al., arXiv 2504.17397).

runs, metrics = study(execute)     # roles "decoder", "metadata", "without metadata"
"""

from collections.abc import Mapping
from dataclasses import replace

from peftlib.experiments.config import Experiment
from peftlib.studies.main import PLANS, PRIMARY
from peftlib.studies.protocol import Execute, Plan, Tables, joined, search

CELLS = {name: PRIMARY[name] for name in ("EMB × Frozen", "Inflated × LoRA", "EMB × LoRA", "DEFLECT")}
DECODERS = ("linear", "unet", "upernet")
# A decoder that is trained from scratch wants more steps, and another rate than the linear one.
STEPS, LARGE_HEAD_LR = (500, 1500), 1e-3
SEEDS = (0, 1, 2)
# What each data set's images come with. Simulated scenes: a place on a continent, whose soils they have, and a day.
METADATA = {"spectral_scenes": ("location", "date"), "eurosat": ("location",)}


def study(execute: Execute, plans: Mapping[str, Plan] = PLANS) -> Tables:
    """Rates are chosen with the linear decoder, without metadata; then come all decoders, and metadata."""
    tables = []
    for data in METADATA:
        searched, best = search(execute, plans[data], CELLS)
        finals = [one for chosen in best.values() for one in (*_decoders(data, chosen), *_metadata(data, chosen))]
        folds = max(plans[data].setting.folds, 1)
        runs = [replace(one, seed=n, init=n, fold=n % folds) for one in finals for n in SEEDS]
        tables += [*searched, execute(runs)]
    return joined(*tables)


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
