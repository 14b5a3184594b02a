"""Decoders and metadata: the comparison study's other two questions, asked of methods as the main comparison chose them.

runs = study_runs(setting, best)
rows = execute(runs, known=read_table("quick"))
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from peftlib.datasets import DATASETS
from peftlib.runs import DECODERS, Run
from peftlib.study import SEEDS, finals

COMPARED = ("frozen", "full", "lora", "deflect")
# What each data set's images come with. Simulated scenes: a place on a continent, whose soils they have, and a day.
METADATA = {"spectral_scenes": ("location", "date"), "marida": ("location", "date"), "eurosat": ("location",)}


def study_runs(
    setting: Run, best: Mapping[str, Run], methods: Sequence[str] = COMPARED, seeds: Sequence[int] = SEEDS
) -> list[Run]:
    """Each method with each decoder (for segmentation) without metadata, and with the linear one with metadata.

    Learning rates and input treatments are those that were chosen with the linear decoder and without metadata; nothing
    is searched anew.

    Args:
        setting: one of ``peftlib.study.settings``.
        best: a run a method, of ``peftlib.study.chosen``.
    """
    runs = [best[name] for name in methods]
    segments = DATASETS[setting.dataset].task == "segmentation"
    decoded = [replace(run, decoder=decoder) for decoder in DECODERS for run in runs] if segments else runs
    return finals(decoded + described(runs), seeds)


def described(runs: Sequence[Run]) -> list[Run]:
    """Runs with metadata; of simulated scenes also those without, since scenes with a place are other scenes."""
    found = []
    for run in runs:
        names = METADATA.get(run.dataset, ())
        if run.dataset == "spectral_scenes":
            run = replace(run, data={**run.data, "located": True})
            found.append(run)
        if names:
            found.append(replace(run, metadata=names))
    return found
