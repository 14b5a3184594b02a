"""Decoders and metadata, the comparison study's other two questions, asked of methods as they were chosen before.

(Marti-Escofet et al., "Fine-tune Smarter, Not Harder", arXiv 2504.17397, recommends UNet, and no metadata.)

rows = study(execute)
scores(rows)
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from peftlib.data import DATASETS
from peftlib.experiments.config import Run
from peftlib.experiments.results import read_table
from peftlib.experiments.statistics import student_half
from peftlib.studies.comparison import OTHER_RATES, SEEDS, chosen, finals, settings

NAME = "decoders"  # of the committed rows
PROFILES = ("quick", "real")  # whose data sets and learning rates are used

COMPARED = ("frozen", "full", "lora", "deflect")
DECODERS = ("linear", "unet", "upernet")
# A decoder that is trained from scratch may want more steps, and another rate: 1e-3 validated best of 3e-4, 1e-3, 1e-2
# (UNet with LoRA on simulated scenes, first seed, 6 epochs).
LONGER, LONGER_METHODS, LARGE_HEAD_LR = 3, ("lora", "deflect"), 1e-3
# What each data set's images come with. Simulated scenes: a place on a continent, whose soils they have, and a day.
METADATA = {"spectral_scenes": ("location", "date"), "marida": ("location", "date"), "eurosat": ("location",)}


def study(execute: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    """All runs on all data sets; ``execute`` does those that notebook 04 has not (``peftlib.experiments.grid.execute``)."""
    tables, runs = {profile: read_table(profile) for profile in PROFILES}, []
    for profile, rows in tables.items():
        for setting in settings(profile):
            runs += study_runs(setting, chosen(rows, setting))
    return execute(runs, known=pd.concat(tables.values(), ignore_index=True))


def study_runs(
    setting: Run,
    best: Mapping[str, Run],
    methods: Sequence[str] = COMPARED,
    seeds: Sequence[int] = SEEDS,
    decoders: Sequence[str] = DECODERS,
) -> list[Run]:
    """Each method with each decoder (for segmentation) without metadata, and with the linear one with metadata.

    Learning rates and input treatments are those that were chosen with the linear decoder and without metadata.
    On simulated scenes some methods are also trained three times as long, large decoders then with a rate of their own.

    Args:
        setting: one of ``peftlib.studies.comparison.settings``.
        best: a run a method, of ``peftlib.studies.comparison.chosen``.
    """
    runs = [best[name] for name in methods]
    segments = DATASETS[setting.dataset].task == "segmentation"
    decoded = [replace(run, decoder=decoder) for decoder in decoders for run in runs] if segments else runs
    if setting.dataset == "spectral_scenes":
        long = [replace(best[name], epochs=LONGER * setting.epochs) for name in LONGER_METHODS if name in methods]
        large = [decoder for decoder in decoders if decoder != "linear"]
        decoded += long + [replace(run, decoder=decoder, head_lr=LARGE_HEAD_LR) for decoder in large for run in long]
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
            # Of the frozen backbone only the head's rate was searched, and that is no rate for an embedding.
            rate = OTHER_RATES[1] if run.method.name == "frozen" else run.lr
            found.append(replace(run, metadata=names, lr=rate))
    return found


def scores(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a finished run: its dataset, task, method, decoder, epochs, seed, metadata, located, percent.

    Args:
        rows: tidy rows of ``study_runs``.

    Returns:
        ``metadata`` is "location, date", say, or ""; ``percent`` 100 x the headline metric of the test part.
    """
    final = rows["split"].eq("test") & rows["headline"].eq(True) & rows["status"].eq("done")
    kept = rows[final].drop_duplicates("key")
    recipes = [json.loads(recipe) for recipe in kept["recipe"]]
    return kept[["dataset", "task", "method", "decoder", "epochs", "seed"]].assign(
        metadata=[", ".join(recipe.get("metadata", ())) for recipe in recipes],
        located=[bool(recipe["data"].get("located")) for recipe in recipes],
        percent=100 * kept["value"].astype(float),
    )


def decoder_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Those that tell decoders apart: of segmentation, without metadata."""
    return scores[scores["task"].eq("segmentation") & scores["metadata"].eq("") & ~scores["located"]]


def gains(scores: pd.DataFrame, of: str, over: str) -> pd.DataFrame:
    """Score of one decoder less that of another, run by run with the same seed.

    Args:
        of, over: names of decoders; or ``"metadata"`` and ``""``.

    Returns:
        dataset, epochs, method, seed, gain in points.
    """
    if of == "metadata":
        usable = scores[
            (scores["decoder"] == "linear") & (scores["located"] | (scores["dataset"] != "spectral_scenes"))
        ]
        one, other = usable[usable["metadata"] != ""], usable[usable["metadata"] == ""]
    else:
        usable = decoder_scores(scores)
        one, other = (usable[usable["decoder"] == name] for name in (of, over))
    same = ["dataset", "epochs", "method", "seed"]
    both = one.merge(other, on=same, suffixes=("", "_over"))
    return both[same].assign(gain=both["percent"] - both["percent_over"])


def intervals(gains: pd.DataFrame, by: Sequence[str] = ("dataset", "epochs", "method")) -> pd.DataFrame:
    """Mean gain of each group, with Student's interval over its runs; infinite for one run alone.

    Returns:
        the columns of ``by``, mean, low, high, runs.
    """
    groups = gains.groupby(list(by), sort=False)["gain"].agg(mean="mean", std="std", runs="size").reset_index()
    half = student_half(groups["std"], groups["runs"]).fillna(np.inf)
    return groups.assign(low=groups["mean"] - half, high=groups["mean"] + half).drop(columns="std")
