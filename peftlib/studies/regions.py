"""The study of unseen regions: which runs, and what their rows say of a model where nothing was labelled.

Each run trains once, in some regions, and is tested twice: there (split "test"), and elsewhere (split "unseen").

rows = study("quick", execute)
region_scores(rows)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from peftlib.experiments.config import Run
from peftlib.experiments.results import read_table
from peftlib.methods import METHODS
from peftlib.studies.comparison import SEEDS, SETTINGS, chosen, finals, inputs, search_rates

HERE, ELSEWHERE = ["europe"], ["africa", "americas", "asia", "oceania"]
WEST, EAST = {"longitudes": [-180, 10]}, {"longitudes": [10, 180]}
_QUICK, _EUROSAT, _PAPER = SETTINGS["quick"][0], SETTINGS["real"][0], SETTINGS["paper"][0]
# Of each profile: what the learning rates are searched on, and what the finals have beside.
REGIONS: dict[str, tuple[tuple[Run, dict], ...]] = {
    "quick": ((_QUICK, {"data": {**_QUICK.data, "continents": HERE}, "unseen": {"continents": ELSEWHERE}}),),
    # Of a sample of 270 chips: 124 in folds in the west, and 92 of the east, which would else train, to test on.
    "real": ((_EUROSAT, {"data": WEST, "unseen": EAST | {"split": "train"}}),),
    "paper": (
        (replace(_PAPER, dataset="eurosat", data=WEST), {"unseen": EAST}),
        (replace(_PAPER, dataset="sen1floods11"), {"unseen": {"split": "bolivia"}}),
        (replace(_PAPER, dataset="ben"), {"unseen": {"split": "ood"}}),
    ),
}
SEARCHED = ("quick", "real")  # profiles whose searches are committed
MOVED = ("cka", "cka_rgb", "probe_before", "probe_after", "probe_rgb")
DRAWS = 10_000


def region_runs(
    rows: pd.DataFrame,
    searched: Run,
    beside: dict,
    methods: Sequence[str] = tuple(METHODS),
    seeds: Sequence[int] = SEEDS,
) -> list[Run]:
    """The final runs, those of the first seed first.

    All methods but VPT start as the pretrained model: they read the bands beyond RGB through a patch embedding that
    begins with zeros, DEFLECT through EMB, the frozen one not at all. What has moved in the end, training has moved.

    Args:
        rows: of a search of ``searched``, which chose each method's learning rate (``peftlib.studies.comparison.chosen``).
        beside: fields of the finals that the search had not, as in ``REGIONS``.
    """
    best = {name: replace(run, method=inputs(name)[0]) for name, run in chosen(rows, searched, methods).items()}
    if "frozen" in best:
        best |= chosen(rows, searched, ["frozen"], rgb=True)
    runs = finals((replace(run, moved=True, **beside) for run in best.values()), seeds)
    return sorted(runs, key=lambda run: seeds.index(run.seed))


def study(
    profile: str,
    execute: Callable[[list[Run]], pd.DataFrame],
    methods: Sequence[str] = tuple(METHODS),
    seeds: Sequence[int] = SEEDS,
    changes: dict | None = None,
) -> pd.DataFrame:
    """All runs of a profile, with learning rates of committed searches or, where there are none, of one made now.

    Args:
        profile: one of ``REGIONS``.
        execute: does runs and gives their rows, such as ``peftlib.experiments.grid.execute``.
        changes: of fields of the final runs, such as ``{"epochs": 2}``.

    Returns:
        the rows of the final runs.

    Raises:
        ValueError: an unknown profile.
    """
    if profile not in REGIONS:
        raise ValueError(f"profile={profile!r}; choose from {', '.join(REGIONS)}")
    runs = []
    for searched, beside in REGIONS[profile]:
        rows = read_table(profile) if profile in SEARCHED else execute(rate_searches(searched, methods))
        runs += region_runs(rows, searched, beside | (changes or {}), methods, seeds)
    return execute(runs)


def rate_searches(searched: Run, methods: Sequence[str]) -> list[Run]:
    """The searches that ``region_runs`` reads: on all bands, of the frozen model on RGB too."""
    frozen = [name for name in methods if name == "frozen"]
    return search_rates(searched, methods) + search_rates(searched, frozen, rgb=True)


def region_scores(rows: pd.DataFrame, metric: str | None = None) -> pd.DataFrame:
    """A row a finished run that was tested in both places.

    Args:
        rows: tidy rows of ``peftlib.experiments.results``.
        metric: what to compare, such as ``"pairs"``; None is that by which the data set is judged.

    Returns:
        columns dataset, method, seed, tuned (% of the encoder), metric, seen and unseen (its values in %), drop (seen
        minus unseen, in points), and, where a run measured them, cka and cka_rgb (0 to 1), probe_before, probe_after
        and probe_rgb (%); see ``peftlib.experiments.evaluations.moved``. Methods in the order of the registry.
    """
    final = rows[rows["stage"].eq("final") & rows["status"].eq("done")]
    places = {"test": "seen", "unseen": "unseen"}
    asked = final["headline"].astype(bool) if metric is None else final["metric"].eq(metric)
    scored = final[asked & final["split"].isin(places)]
    scored = scored.assign(name=scored["split"].map(places), value=100 * scored["value"])
    moves = final[final["split"].eq("rgb")]
    percent = np.where(moves["metric"].str.startswith("probe"), 100.0, 1.0)
    moves = moves.assign(name=moves["metric"], value=percent * moves["value"])
    wide = pd.concat([scored, moves]).pivot(index="key", columns="name", values="value")
    wide = wide.reindex(columns=["seen", "unseen", *MOVED]).dropna(subset=["seen", "unseen"])
    facts = scored.drop_duplicates("key").set_index("key")
    facts = facts[["dataset", "method", "seed", "tuned_percent", "metric"]].rename(columns={"tuned_percent": "tuned"})
    table = facts.join(wide, how="inner").assign(drop=wide["seen"] - wide["unseen"])
    order = {name: place for place, name in enumerate(METHODS)}
    return table.sort_values(["dataset", "method", "seed"], key=lambda c: c.map(order) if c.name == "method" else c)


def mean_of(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Each method's mean over data sets and seeds, in the order of methods.

    Returns:
        columns method, mean, std (over seeds, n - 1, of means over data sets; NaN for one), seeds, tuned.
    """
    each = table.groupby(["method", "seed"], sort=False)[[column, "tuned"]].mean().groupby("method", sort=False)
    facts = {
        "mean": each[column].mean(),
        "std": each[column].std(),
        "seeds": each.size(),
        "tuned": each["tuned"].mean(),
    }
    return pd.DataFrame(facts).reset_index()


def chance_of_spread(table: pd.DataFrame, column: str = "drop") -> float:
    """How often methods would differ as much in a column as they do, were all the same: a permutation test.

    Within each block (data set and seed) the values are dealt out to the methods anew; the statistic is the variance of
    the methods' means (what Friedman's test does with ranks). NaN with fewer than two methods or blocks.
    """
    wide = table.pivot(index=["dataset", "seed"], columns="method", values=column).dropna(axis=1).to_numpy()
    if min(wide.shape) < 2:
        return math.nan
    draw = np.random.default_rng(0)
    drawn = draw.permuted(np.broadcast_to(wide, (DRAWS, *wide.shape)), axis=2).mean(1).var(1)
    return float((1 + (drawn >= wide.mean(0).var() - 1e-12).sum()) / (1 + DRAWS))


def rank_correlation(table: pd.DataFrame, one: str, other: str) -> float:
    """Spearman's rank correlation of two columns over the means of the methods that tune something."""
    means = table[table["tuned"] > 0].groupby("method")[[one, other]].mean()
    return float(means.corr("spearman").iloc[0, 1])


def findings(table: pd.DataFrame) -> list[str]:
    """What the rows say, in sentences with their numbers.

    Args:
        table: of ``region_scores``.
    """
    lost, seeds = mean_of(table, "drop"), table["seed"].nunique()
    least, most = (lost.loc[place] for place in (lost["mean"].idxmin(), lost["mean"].idxmax()))
    noise = math.sqrt((lost["std"] ** 2).mean())
    text = f"Drop in unseen regions: {least['mean']:.1f} ({least['method']}) to {most['mean']:.1f} points "
    text += f"({most['method']})" + (f"; the seed alone moves a method's by ± {noise:.1f}." if noise > 0 else ".")
    told, chance = [text], chance_of_spread(table)
    if math.isnan(chance):
        told.append("One seed or method: whether methods differ cannot be told.")
    else:
        verdict = "they differ" if chance < 0.05 else "these runs do not tell them apart"
        text = (
            f"Drops dealt out to the methods at random differ as much in {100 * chance:.0f}% of draws ({seeds} seeds): "
        )
        told.append(f"{text}{verdict}.")
    if table["cka_rgb"].notna().any():
        kept = mean_of(table[table["tuned"] > 0], "cka_rgb").sort_values("mean")
        text = ", ".join(f"{row.method} {row.mean:.2f}" for row in kept.itertuples())
        told.append(f"CKA with the pretrained tokens on RGB: {text}; the frozen model is at 1 by construction.")
        share, drop = (rank_correlation(table, *pair) for pair in (("tuned", "cka_rgb"), ("cka_rgb", "drop")))
        text = f"tuned share and CKA {share:+.1f}; CKA and drop {drop:+.1f}"
        told.append(f"Rank correlations over the {len(kept)} methods that tune something: {text}.")
    if table["probe_rgb"].notna().any():
        probe = mean_of(table[table["tuned"] > 0], "probe_rgb").sort_values("mean", ignore_index=True)
        low, high = (f"{row['mean']:.0f} ({row['method']})" for _, row in probe.iloc[[0, -1]].iterrows())
        before = f"{table['probe_before'].mean():.0f}%"
        told.append(
            f"A probe of the pretrained tokens scores {before} on them, on those of adapted models {low} to {high}."
        )
    return told
