"""From scores of runs to what may be said of them: paired differences with intervals, verdicts.

Scores are in percent points wherever rows come from ``peftlib.experiments.results.scores``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq

PAIR = ("dataset", "backbone", "repeat", "fold", "seed")  # what two runs share that make a pair


@dataclass(frozen=True)
class Interval:
    """A mean of n numbers, an interval around it, and the two-sided p-value of 0, where there is one."""

    mean: float
    low: float
    high: float
    n: int
    p: float = float("nan")


def paired(scores: pd.DataFrame, one: pd.Series, other: pd.Series, on: Sequence[str] = PAIR) -> pd.DataFrame:
    """Runs of two kinds, side by side: columns of ``on``, ``one``, ``other`` and their ``difference``.

    ``one`` and ``other`` say which rows are of which kind. ValueError: two runs of a kind where one belongs.
    """
    sides = []
    for name, rows in (("one", scores[one]), ("other", scores[other])):
        twice = rows[rows.duplicated(list(on), keep=False)]
        if len(twice):
            raise ValueError(f"{len(twice)} runs of one kind share {', '.join(on)}: {', '.join(twice['key'])}")
        sides.append(rows.set_index(list(on))["percent"].rename(name))
    table = pd.concat(sides, axis=1, join="inner").reset_index()
    return table.assign(difference=table["one"] - table["other"])


def paired_difference(differences: Sequence[float], test_to_train: float = 0.0) -> Interval:
    """95% interval by the corrected resampled t-test (Nadeau and Bengio, 2003), for folds that share images.

    The variance of the mean of J differences is their variance times 1/J + n_test/n_train.

    Args:
        differences: of J pairs of runs.
        test_to_train: n_test/n_train; 1/(k - 1) for k folds, 0 where each run has images of its own.
    """
    values = np.asarray(differences, dtype=float)
    n = len(values)
    if n < 2:
        return Interval(values.mean() if n else float("nan"), -float("inf"), float("inf"), n)
    error = values.std(ddof=1) * sqrt(1 / n + test_to_train)
    mean, half = values.mean(), error * stats.t.ppf(0.975, n - 1)
    p = 2 * stats.t.sf(abs(mean) / error, n - 1) if error else float(mean == 0)
    return Interval(float(mean), float(mean - half), float(mean + half), n, float(p))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values adjusted for their number (Holm, 1979), in the order given."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def detectable_difference(std: float, n: int, test_to_train: float = 0.0, power: float = 0.8) -> float:
    """The true difference that ``paired_difference`` at 95% settles with this probability, n pairs of such a spread."""
    limit = stats.f.ppf(0.95, 1, n - 1)  # of t squared: scipy's noncentral t is NaN at some shifts
    shift = brentq(lambda d: stats.ncf.sf(limit, 1, n - 1, d * d) - power, 1e-6, 100)
    return float(shift * std * sqrt(1 / n + test_to_train))


def verdict(interval: Interval, margin: float = 0.0) -> str:
    """``"ahead"``, ``"behind"``, or ``"not settled"`` where the interval holds 0.

    ``"no difference of 2 points"`` where it holds 0 and lies inside a margin of 2 to either side.
    """
    if interval.low > 0 or interval.high < 0:
        return "ahead" if interval.low > 0 else "behind"
    inside = -margin < interval.low and interval.high < margin
    return f"no difference of {margin:g} points" if inside else "not settled"
