"""What rows of the main study say: contrasts that were named beforehand, and checks of precision and of steps."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from peftlib.experiments.config import SEARCH
from peftlib.experiments.results import read_study, scores
from peftlib.experiments.statistics import detectable_difference, holm, paired, paired_difference, verdict
from peftlib.methods import METHODS
from peftlib.studies.main import PLANS
from peftlib.studies.plots import label
from peftlib.studies.protocol import Tables, joined
from peftlib.studies.tables import named

# Question -> one cell minus another, or minus the better of several, as validation has it.
CONTRASTS: dict[str, tuple[str, set[str]]] = {
    "EMB, or kernels for the new bands, under LoRA?": ("EMB × LoRA", {"Inflated × LoRA"}),
    "DEFLECT, or LoRA without EMB?": ("DEFLECT", {"RGB × LoRA", "Inflated × LoRA"}),
    "Does untangled attention add to EMB?": ("DEFLECT", {"EMB × Frozen"}),
    "Does deflection, the norm constraint, pay?": ("DEFLECT", {"DEFLECT (constrain=False)"}),
    "Low-rank updates or untangled attention on EMB, at an equal share?": ("EMB × LoRA (rank=2)", {"DEFLECT"}),
}
COLUMNS = ("question", "dataset", "metric", "one", "other", "n", "mean", "low", "high", "p", "detectable", "said")
CHANGED = {"deflect": "DEFLECT", "lora": "EMB × LoRA"}  # what an ablation's choice is compared with


def first_with_finals(names: Sequence[str | Path]) -> Tables:
    """Rows of several studies as one: each data set's are those of the first study that has final runs of it."""
    taken: set[str] = set()
    parts = []
    for runs, metrics in map(read_study, names):
        new = set(runs.loc[runs["role"] == "final", "dataset"]) - taken
        parts.append((runs[runs["dataset"].isin(new)], metrics))
        taken |= new
    return joined(*parts)


def overlap(found: pd.DataFrame) -> float:
    """n_test/n_train of a data set's runs: 1/(k - 1) for k folds, 0 where each run has scenes of its own."""
    folds = found["folds"].iloc[0]
    return 1 / (folds - 1) if folds else 0.0


def searched(runs: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """What validation said of each rate that was tried, of a method, or of an input where blocks are frozen.

    A row a data set, cell, start and rate: percent, the mean over its n search runs; best, whether it is the highest of
    its cell; edge, whether none was tried beyond.
    """
    tried = named(scores(runs[runs["role"] == SEARCH], metrics, "val"))
    tuned = tried["method"].map(lambda name: bool(METHODS[name].learning_rates))
    tried = tried.assign(rate=tried["lr"].where(tuned, tried["input_lr"]), part=np.where(tuned, "method", "input"))
    cell, place = ["dataset", "cell", "part"], ["dataset", "cell", "part", "input_options", "rate"]
    table = tried.groupby(place, sort=False)["percent"].agg(percent="mean", n="size").reset_index()
    rates = table.groupby(cell)["rate"]
    at_end = table["rate"].eq(rates.transform("min")) | table["rate"].eq(rates.transform("max"))
    return table.assign(best=table["percent"].eq(table.groupby(cell)["percent"].transform("max")), edge=at_end)


def contrasts(runs: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """A row a data set and contrast of which both cells have final runs.

    Returns:
        columns question, dataset, metric, one, other, n; mean, low, high of the paired difference in points, with its
        95% interval; p, adjusted for the contrasts of the data set (Holm); detectable, the difference that so many
        pairs settle with a power of 80%, without that adjustment; said: ahead, behind or not settled.
    """
    found = named(scores(runs[runs["role"] == "final"], metrics))
    best = searched(runs, metrics).groupby(["dataset", "cell"])["percent"].max()
    rows = []
    for dataset in sorted(found["dataset"].unique(), key=[*PLANS, *found["dataset"]].index):
        part = found[found["dataset"] == dataset]
        there = set(part["cell"])
        named_here = [
            (question, one, max(there & others, key=lambda cell: best.get((dataset, cell), 0)))
            for question, (one, others) in CONTRASTS.items()
            if one in there and there & others
        ]
        tested = [gap(part, part["cell"] == one, part["cell"] == other) for _, one, other in named_here]
        adjusted = holm([row["p"] for row in tested])
        for (question, one, other), row, p in zip(named_here, tested, adjusted, strict=True):
            facts = {"question": question, "dataset": dataset, "metric": part["metric"].iloc[0], "one": one}
            said = row["said"] if p < 0.05 else "not settled"
            rows.append(facts | {"other": other} | row | {"p": p, "said": said})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def gap(found: pd.DataFrame, one: pd.Series, other: pd.Series) -> dict:
    """Paired difference of two kinds of runs of a data set, as columns of ``contrasts``. one, other: which rows."""
    pairs, shared = paired(found, one, other)["difference"], overlap(found)
    interval, n = paired_difference(pairs, shared), len(pairs)
    detectable = detectable_difference(pairs.std(), n, shared) if n > 1 else float("nan")
    return asdict(interval) | {"detectable": detectable, "said": verdict(interval)}


def checked(runs: pd.DataFrame, metrics: pd.DataFrame, role: str) -> pd.DataFrame:
    """Runs of a check ("precision": float32, "plateau": other steps) minus the final runs of the same cell and fold.

    A row a data set, cell, precision and number of steps, ``usual`` being that of the final runs; ``gap``.
    """
    found = named(scores(runs[runs["role"].isin(["final", role])], metrics))
    rows = []
    for (dataset, cell), part in found.groupby(["dataset", "cell"], sort=False):
        for (precision, steps), again in part[part["role"] == role].groupby(["precision", "steps"]):
            pair = pd.concat([again, part[part["role"] == "final"]])
            facts = {"dataset": dataset, "cell": cell, "precision": precision, "steps": steps}
            facts["usual"] = part.loc[part["role"] == "final", "steps"].iloc[0]
            rows.append(facts | gap(pair, pair["role"] == role, pair["role"] == "final"))
    return pd.DataFrame(rows)


def ablations(runs: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """A row a data set and option: DEFLECT with another choice minus DEFLECT as it is, and what is said of it."""
    found = named(scores(runs[runs["role"].isin(["final", "ablation"])], metrics))
    rows = []
    for (dataset, cell, method), part in found[found["role"] == "ablation"].groupby(["dataset", "cell", "method"]):
        whole = found[found["dataset"] == dataset]
        pair = whole[whole["key"].isin(part["key"]) | whole["cell"].eq(CHANGED[method])]
        facts = {"dataset": dataset, "one": cell, "other": CHANGED[method]}
        rows.append(facts | gap(pair, pair["key"].isin(part["key"]), pair["cell"] == CHANGED[method]))
    return pd.DataFrame(rows)


def advice(table: pd.DataFrame) -> Iterator[str]:
    """A line a question: on which data sets it is settled, and which way. table: of ``contrasts``."""
    for question, part in table.groupby("question", sort=False):
        places = part.groupby("said", sort=False)["dataset"].agg(lambda names: ", ".join(map(label, names)))
        yield f"{question} {part['one'].iloc[0]}: " + "; ".join(f"{said} on {where}" for said, where in places.items())
