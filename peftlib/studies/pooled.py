"""What runs kept of single test images: how much of a contrast these leave open, and which classes are confused.

table = pooled(contrasts(runs, metrics), runs, metrics, runs_dir() / "rows" / "predictions")
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from peftlib.data import DATASETS
from peftlib.experiments.results import scores
from peftlib.experiments.statistics import Interval
from peftlib.studies.tables import named
from peftlib.training.metrics import class_scores

RESAMPLES = 2000


def pooled(table: pd.DataFrame, runs: pd.DataFrame, metrics: pd.DataFrame, predictions: Path) -> pd.DataFrame:
    """A row for each of ``contrasts``' whose final runs kept predictions: dataset, one, other, images; mean, low, high.

    Counts of all folds and repeats are summed, image by image; images are drawn anew, the trained models are not. So
    the interval holds what other images would change, and nothing of what other trainings would.
    """
    found = named(scores(runs[runs["role"] == "final"], metrics))

    @cache  # a cell is in several contrasts
    def kept(dataset: str, cell: str) -> dict[str, np.ndarray]:
        keys = found.loc[found["dataset"].eq(dataset) & found["cell"].eq(cell), "key"]
        files = [predictions / f"{key}.npz" for key in keys]
        return counted(files) if all(file.is_file() for file in files) else {}

    rows = []
    for r in table.itertuples():
        one, other = kept(r.dataset, r.one), kept(r.dataset, r.other)
        if one and other:
            gap = bootstrap(one, other, r.metric, DATASETS[r.dataset].classes)
            facts = {"dataset": r.dataset, "one": r.one, "other": r.other, "images": gap.n}
            rows.append(facts | {"mean": gap.mean, "low": gap.low, "high": gap.high})
    return pd.DataFrame(rows, columns=["dataset", "one", "other", "images", "mean", "low", "high"])


def confusions(runs: pd.DataFrame, metrics: pd.DataFrame, predictions: Path) -> pd.DataFrame:
    """Confusion of the final runs that kept predictions: dataset, cell, true and predicted class; count, over runs."""
    found = named(scores(runs[runs["role"] == "final"], metrics))
    found = found[[(predictions / f"{key}.npz").is_file() for key in found["key"]]]
    tables = []
    for (dataset, cell), part in found.groupby(["dataset", "cell"], sort=False):
        matrix = sum(counted(predictions / f"{key}.npz" for key in part["key"]).values())
        names = pd.Index(DATASETS[dataset].classes)
        table = pd.DataFrame(matrix, names.rename("true"), names.rename("predicted")).stack().rename("count")
        tables.append(table.reset_index().assign(dataset=dataset, cell=cell))
    columns = ["dataset", "cell", "true", "predicted", "count"]
    return pd.concat(tables)[columns] if tables else pd.DataFrame(columns=columns)


def counted(files: Iterable[Path]) -> dict[str, np.ndarray]:
    """Name of a test image -> its confusion matrix (classes, classes), true classes down, summed over runs."""
    total: dict[str, np.ndarray] = {}
    for path in files:
        with np.load(path) as kept:
            if "confusion" in kept:
                matrices = kept["confusion"].astype(np.int64)
            else:
                classes = kept["logits"].shape[1]
                matrices = np.zeros((len(kept["truth"]), classes, classes), dtype=np.int64)
                matrices[np.arange(len(matrices)), kept["truth"], kept["logits"].argmax(1)] = 1
            for source, matrix in zip(kept["source"].tolist(), matrices, strict=True):
                total[source] = total.get(source, 0) + matrix
    return total


def bootstrap(one: dict, other: dict, metric: str, classes: tuple[str, ...], resamples: int = RESAMPLES) -> Interval:
    """Difference of a metric in points, on the images that both have, and the middle 95% of its bootstrap."""
    sources = sorted(one.keys() & other.keys())
    both = [np.stack([side[source] for source in sources]).reshape(len(sources), -1) for side in (one, other)]
    draws = np.random.default_rng(0).multinomial(len(sources), [1 / len(sources)] * len(sources), resamples)
    weights = np.concatenate([np.ones((1, len(sources)), dtype=draws.dtype), draws])

    def scored(counts: np.ndarray) -> np.ndarray:
        matrices = torch.from_numpy(weights @ counts).unflatten(1, (len(classes),) * 2)
        return np.array([100 * float(class_scores(matrix, classes, ious=True)[metric]) for matrix in matrices])

    first, second = map(scored, both)
    mean, *gaps = first - second
    low, high = np.nanpercentile(gaps, [2.5, 97.5])
    return Interval(float(mean), float(low), float(high), len(sources))
