"""Decoders and metadata, the comparison study's other two questions (Marti-Escofet et al., arXiv 2504.17397).

runs, metrics = study(execute)     # roles "decoder", "metadata", "without metadata"
"""

from collections.abc import Mapping

from peftlib.experiments.config import Experiment
from peftlib.studies.main import PLANS, PRIMARY
from peftlib.studies.protocol import Execute, Plan, Tables, final_runs, joined, search, varied

CELLS = {name: PRIMARY[name] for name in ("EMB × LoRA", "DEFLECT")}
# Where a decoder has something to draw: masks of 64 px, patches that cover less than 5 of them.
DRAWN, DECODERS, STEPS = "water", ("linear", "unet", "upernet"), (250, 500, 1000)
LARGE_HEAD_LR = 1e-3  # a decoder of several layers wants a lower rate than the linear one
# What each data set's images come with. Simulated scenes: a place on a continent, whose soils they have, and a day.
METADATA = {"spectral_scenes": ("location", "date"), "eurosat": ("location",)}


def study(execute: Execute, plans: Mapping[str, Plan] = PLANS) -> Tables:
    """Rates are those of the main study, whose searches run if they were not: a linear decoder, no metadata."""
    tables = []
    for name in [name for name in (DRAWN, *METADATA) if name in plans]:
        _, best = search(execute, plans[name], CELLS)
        runs = decoders(best) if name == DRAWN else with_and_without(name, best)
        tables += [execute(final_runs(one, plans[name].first_finals, role=role)) for role, one in runs]
    return joined(*tables)


def decoders(chosen: Mapping[str, Experiment]) -> list[tuple[str, dict]]:
    runs: dict[tuple, Experiment] = {}
    for name, one in chosen.items():
        for decoder in DECODERS:
            head_lr = one.head_lr if decoder == "linear" else LARGE_HEAD_LR
            runs |= {(name, decoder, n): varied(one, decoder=decoder, head_lr=head_lr, steps=n) for n in STEPS}
    return [("decoder", runs)]


def with_and_without(dataset: str, chosen: Mapping[str, Experiment]) -> list[tuple[str, dict]]:
    """On the same images: scenes with a place are other scenes."""
    located = {"located": True} if dataset == "spectral_scenes" else {}
    plain = {name: varied(one, data=located) for name, one in chosen.items()}
    told = {name: varied(one, metadata=METADATA[dataset]) for name, one in plain.items()}
    return [("without metadata", plain), ("metadata", told)]
