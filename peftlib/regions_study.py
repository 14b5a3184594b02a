"""The study of unseen regions: which runs, and how much a model loses where nothing was labelled.

Each run trains once, in some regions, and is tested twice: there (split "test"), and elsewhere (split "unseen").
"""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from peftlib.methods import METHODS
from peftlib.runs import Run
from peftlib.study import SEEDS, SETTINGS, chosen, finals, inputs

HERE, ELSEWHERE = ["europe"], ["africa", "americas", "asia", "oceania"]
_QUICK, _PAPER = SETTINGS["quick"][0], SETTINGS["paper"][0]
# Of each profile: what is searched for learning rates -> what the finals have beside.
REGIONS: dict[str, tuple[tuple[Run, dict], ...]] = {
    "quick": ((_QUICK, {"data": {**_QUICK.data, "continents": HERE}, "unseen": {"continents": ELSEWHERE}}),),
    "paper": (
        (replace(_PAPER, dataset="sen1floods11"), {"unseen": {"split": "bolivia"}}),
        (replace(_PAPER, dataset="ben"), {"unseen": {"split": "ood"}}),
    ),
}


def region_runs(
    rows: pd.DataFrame,
    searched: Run,
    beside: dict,
    methods: Sequence[str] = tuple(METHODS),
    seeds: Sequence[int] = SEEDS,
) -> list[Run]:
    """The final runs: all seeds of the first method before those of the next, ordered by seed.

    All methods start as the pretrained model does (but VPT): they read the bands beyond RGB through a patch embedding
    that begins with zeros, DEFLECT through EMB, the frozen one not at all. So whatever has moved, training moved.

    Args:
        rows: of a search of ``searched``, which chose each method's learning rate (``peftlib.study.chosen``).
        beside: what the finals have and the search had not, an entry of ``REGIONS``.
    """
    best = {name: replace(run, method=inputs(name)[0]) for name, run in chosen(rows, searched, methods).items()}
    if "frozen" in methods:
        best |= chosen(rows, searched, ["frozen"], rgb=True)
    runs = finals((replace(run, moved=True, **beside) for run in best.values()), seeds)
    return sorted(runs, key=lambda run: seeds.index(run.seed))
