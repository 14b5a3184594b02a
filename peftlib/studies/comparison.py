"""The comparison of methods, made fair: what is searched for each, by what it is chosen, and what is run in the end.

For each data set and backbone: every method tries the same number of learning rates and, where it has a choice, of ways
to read the bands beyond RGB. Validation chooses. Only then, with other seeds too, the test part is scored.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import pandas as pd

from peftlib.experiments.config import Run
from peftlib.experiments.grid import grid
from peftlib.experiments.results import recipe
from peftlib.methods import (
    METHODS,
    VPT,
    Deflect,
    Frozen,
    Full,
    Method,
    PatchEmbedding,
    method_from,
)
from peftlib.methods.base import IGNORE, InputMethod, changed

SEEDS = (0, 1, 2)
HEAD_LR = 3e-3
# Learning rates to try, four each; of the head for the frozen backbone, else of what is tuned.
OTHER_RATES = (1.25e-4, 5e-4, 2e-3, 8e-3)
HIGHER_RATES = (5e-4, 2e-3, 8e-3, 3.2e-2)
LEARNING_RATES = dict.fromkeys(METHODS, OTHER_RATES) | {
    "frozen": (3e-3, 1e-2, 3e-2, 1e-1),
    "full": (1e-5, 3e-5, 1e-4, 3e-4),
    "patch_embed": (1e-4, 3e-4, 1e-3, 3e-3),
    "norm_tuning": (2.5e-4, 1e-3, 4e-3, 1.6e-2),
    "bitfit": (2.5e-4, 1e-3, 4e-3, 1.6e-2),
    "earth_adapter": HIGHER_RATES,
    "deflect": HIGHER_RATES,
}
# As many prompts as a 56 px image has patches (the comparison study takes 100 at 224 px).
PROMPTS = 16

_SMALL = Run(dataset="spectral_scenes", method=Frozen(), batch_size=16, head_lr=HEAD_LR)
_LARGE = replace(
    _SMALL, image_size=224, batch_size=32, epochs=50, patience=10, precision="bf16-mixed", decoder="upernet"
)
# What each profile compares on: a run each, of which method, learning rates and seeds are then filled in.
SETTINGS: dict[str, tuple[Run, ...]] = {
    "quick": (replace(_SMALL, data={"length": 192, "size": 56}, val_images=64, epochs=6),),
    "real": (
        replace(_SMALL, dataset="eurosat", folds=3, epochs=8),
        replace(_SMALL, dataset="marida", tile=64, train_tiles=1, val_images=64, epochs=6),
    ),
    "paper": tuple(
        replace(_LARGE, dataset=name) for name in ("so2sat", "brick_kiln", "forestnet", "burn_scars", "mados")
    ),
}
BACKBONES = {
    "quick": ("dinov2_small",),
    "real": ("dinov2_small",),
    "paper": ("cross_scale_mae_large", "scalemae_large", "dino_mc_small"),
}

ABLATION = {"EMB": Deflect(layers=()), "EMB + uAtt": Deflect(constrain=False), "EMB + uAtt + deflection": Deflect()}
RANKS = (2, 6, 16)
LAYERS = {"first 4": (0, 1, 2, 3), "middle 4": (4, 5, 6, 7), "last 4": (-4, -3, -2, -1), "all": "all"}


def inputs(name: str) -> tuple[Method, ...]:
    """Ways for a method to read all bands: configs, the first of which the learning rates are tried with."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; choose from {', '.join(METHODS)}")
    if name == "deflect":
        return (Deflect(),)
    config = VPT(tokens=PROMPTS) if name == "vpt" else METHODS[name]()
    if name == "frozen":
        return tuple(changed(config, new_bands=start) for start in ("mean", "nearest"))
    return tuple(changed(config, new_bands=start, train_patch_embed=True) for start in ("zero", "mean"))


def rgb_only(method: Method) -> Method | None:
    """The same method on red, green and blue alone; None for DEFLECT, which is there for the other bands."""
    if not isinstance(method, InputMethod):
        return None
    tunes_it = isinstance(method, Full | PatchEmbedding)
    return replace(method, new_bands=IGNORE, train_patch_embed=tunes_it)


def first_inputs(methods: Sequence[str], rgb: bool = False) -> dict[str, Method]:
    """What the learning rates are tried with, on all bands or on red, green and blue alone (then without DEFLECT)."""
    configs = {name: inputs(name)[0] for name in methods}
    if not rgb:
        return configs
    return {name: alone for name, config in configs.items() if (alone := rgb_only(config)) is not None}


def with_rate(run: Run, lr: float) -> Run:
    """A run with a learning rate where its method has something to tune, else of its head."""
    return replace(run, lr=lr, head_lr=lr) if run.method.name == "frozen" else replace(run, lr=lr)


def search_rates(setting: Run, methods: Sequence[str] = tuple(METHODS), rgb: bool = False) -> list[Run]:
    """First search: the learning rates of each method, on all bands or on red, green and blue alone."""
    return [
        with_rate(replace(setting, method=config, stage="search"), lr)
        for name, config in first_inputs(methods, rgb).items()
        for lr in LEARNING_RATES[name]
    ]


def search_inputs(setting: Run, rows: pd.DataFrame, methods: Sequence[str] = tuple(METHODS)) -> list[Run]:
    """Second search: other ways to read the bands, with the learning rate that was best."""
    best = chosen(rows, setting, methods)
    return [replace(best[name], method=other, stage="search") for name in methods for other in inputs(name)[1:]]


def chosen(
    rows: pd.DataFrame, setting: Run, methods: Sequence[str] = tuple(METHODS), rgb: bool = False
) -> dict[str, Run]:
    """For each method the run of a search that validated best, as a final run.

    Best is the highest headline metric, of equals the lower loss.

    Args:
        rows: tidy rows of searches, of this setting among others.
        rgb: of those on red, green and blue alone (DEFLECT has none); False is those on all bands.

    Raises:
        ValueError: a method has no search rows in this setting.
    """
    here = rows[(rows["stage"] == "search") & (rows["split"] == "val") & (rows["status"] == "done")]
    facts = setting.facts()
    same = ("dataset", "backbone", "weights", "decoder", "image_size", "epochs", "seed", "init")
    here = here[(here[list(same)] == [facts[name] for name in same]).all(axis=1) & (here["recipe"] == recipe(facts))]
    here = here.loc[[(json.loads(options).get("new_bands") == IGNORE) == rgb for options in here["options"]]]
    best = {}
    for name in methods:
        if rgb and rgb_only(inputs(name)[0]) is None:
            continue
        mine = here[here["method"] == name]
        if mine.empty:
            bands = " and RGB alone" if rgb else ""
            raise ValueError(f"no search rows of {name} on {setting.dataset} with {setting.backbone}{bands}")
        score = mine[mine["headline"].astype(bool)].set_index("key")["value"]
        loss = mine[mine["metric"] == "loss"].set_index("key")["value"]
        order = pd.DataFrame({"score": -score.round(6), "loss": loss}).sort_values(["score", "loss"])
        row = mine[mine["key"] == order.index[0]].iloc[0]
        method = method_from(name, json.loads(row["options"]))
        best[name] = replace(setting, method=method, lr=float(row["lr"]), head_lr=float(row["head_lr"]))
    return best


def finals(best: Iterable[Run], seeds: Sequence[int] = SEEDS) -> list[Run]:
    """What is scored on the test part: each method as it was chosen, with all seeds."""
    return [replace(run, seed=seed) for run in best for seed in seeds]


def ablation_runs(deflect: Run, seeds: Sequence[int] = SEEDS) -> list[Run]:
    """DEFLECT without its parts."""
    return grid(deflect, method=list(ABLATION.values()), seed=seeds)


def rank_runs(deflect: Run, lora: Run, seeds: Sequence[int] = SEEDS) -> list[Run]:
    """DEFLECT and LoRA with other ranks, the rest as chosen (LoRA with alpha as large as its rank)."""
    ranks = [replace(deflect, method=changed(deflect.method, rank=rank)) for rank in RANKS]
    ranks += [replace(lora, method=changed(lora.method, rank=rank, alpha=float(rank))) for rank in RANKS]
    return finals(ranks, seeds)


def layer_runs(deflect: Run, seeds: Sequence[int] = SEEDS) -> list[Run]:
    """DEFLECT in some blocks only."""
    return grid(deflect, method=[changed(deflect.method, layers=layers) for layers in LAYERS.values()], seed=seeds)


def start_runs(best: Iterable[Run], starts: Sequence[int] = SEEDS) -> list[Run]:
    """Other starts of adapter and head, everything else with the first seed."""
    return [replace(run, seed=0, init=start) for run in best for start in starts]


# What may stand beside the finals, from what was chosen on all bands, on RGB alone, and the seeds.
EXTRAS: dict[str, Callable[[Mapping[str, Run], Mapping[str, Run], Sequence[int]], list[Run]]] = {
    "rgb": lambda best, best_rgb, seeds: finals(best_rgb.values(), seeds),
    "ablation": lambda best, best_rgb, seeds: ablation_runs(best["deflect"], seeds),
    "ranks": lambda best, best_rgb, seeds: rank_runs(best["deflect"], best["lora"], seeds),
    "layers": lambda best, best_rgb, seeds: layer_runs(best["deflect"], seeds),
    "starts": lambda best, best_rgb, seeds: start_runs(best.values(), seeds),
}
EXTRAS_OF = {"quick": ("rgb", "ablation"), "real": tuple(EXTRAS), "paper": tuple(EXTRAS)}


def settings(
    profile: str,
    datasets: Sequence[str] = (),
    backbones: Sequence[str] = (),
    weights: Mapping[str, str] = MappingProxyType({}),
    **changes,
) -> list[Run]:
    """What a profile compares on, each data set with each backbone.

    Args:
        profile: one of ``SETTINGS``.
        datasets, backbones: some of the profile's, or other backbones; empty is all of the profile's.
        weights: backbone -> file, for those that cannot be fetched.
        changes: of fields of the runs, such as ``epochs=2``.

    Raises:
        ValueError: an unknown profile or data set; names the choices.
    """
    if profile not in SETTINGS:
        raise ValueError(f"profile={profile!r}; choose from {', '.join(SETTINGS)}")
    known = {setting.dataset: setting for setting in SETTINGS[profile]}
    if unknown := [name for name in datasets if name not in known]:
        raise ValueError(f"profile {profile!r} has no data sets {unknown}; it has {', '.join(known)}")
    return [
        replace(known[name], backbone=backbone, weights=weights.get(backbone, "default"), **changes)
        for name in datasets or known
        for backbone in backbones or BACKBONES[profile]
    ]


def outline(
    setting: Run, methods: Sequence[str], seeds: Sequence[int], extras: Sequence[str], search: bool
) -> list[Run]:
    """The runs of ``compare`` as if each method's first choices were best: as many, and about as costly."""
    best, alone = (
        {name: with_rate(replace(setting, method=config), OTHER_RATES[0]) for name, config in configs.items()}
        for configs in (first_inputs(methods), first_inputs(methods, rgb=True))
    )
    searched = []
    if search:
        searched = search_rates(setting, methods)
        searched += search_rates(setting, methods, rgb=True) if "rgb" in extras else []
        others = [(run, other) for name, run in best.items() for other in inputs(name)[1:]]
        searched += [replace(run, method=other, stage="search") for run, other in others]
    return searched + finals(best.values(), seeds) + _extra_runs(best, alone, seeds, extras)


def compare(
    setting: Run,
    execute: Callable[[list[Run]], pd.DataFrame],
    methods: Sequence[str] = tuple(METHODS),
    seeds: Sequence[int] = SEEDS,
    extras: Sequence[str] = ("rgb", "ablation", "ranks", "layers"),
    best: Mapping[str, Run] | None = None,
    best_rgb: Mapping[str, Run] = MappingProxyType({}),
) -> pd.DataFrame:
    """A whole comparison on one data set and backbone: the searches, the finals, and what is asked for beside.

    Args:
        setting: one of ``settings``, or any run; its method, rates and seed are replaced.
        execute: does runs and gives their rows, such as ``peftlib.experiments.grid.execute`` with its options filled in.
        extras: of ``EXTRAS``; those about methods that are not compared are left out.
        best: for each method its choice, of an earlier search (``chosen``); None searches.
        best_rgb: with ``best``, the same on red, green and blue alone.

    Returns:
        the rows of all.
    """
    _extra_runs({}, {}, seeds, extras)  # refuses an unknown name now, not after the searches
    rows = []
    if best is None:
        rows.append(execute(search_rates(setting, methods)))
        rows.append(execute(search_inputs(setting, rows[0], methods)))
        best = chosen(pd.concat(rows), setting, methods)
        if "rgb" in extras:
            rows.append(execute(search_rates(setting, methods, rgb=True)))
            best_rgb = chosen(rows[-1], setting, methods, rgb=True)
    best = {name: best[name] for name in methods}
    best_rgb = {name: run for name, run in best_rgb.items() if name in methods}
    rows.append(execute(finals(best.values(), seeds) + _extra_runs(best, best_rgb, seeds, extras)))
    return pd.concat(rows, ignore_index=True)


def _extra_runs(
    best: Mapping[str, Run], best_rgb: Mapping[str, Run], seeds: Sequence[int], extras: Sequence[str]
) -> list[Run]:
    if unknown := [name for name in extras if name not in EXTRAS]:
        raise ValueError(f"extras={unknown}; choose from {', '.join(EXTRAS)}")
    needed = {"ablation": {"deflect"}, "ranks": {"deflect", "lora"}, "layers": {"deflect"}}
    wanted = [name for name in extras if needed.get(name, set()) <= set(best)]
    return [run for name in wanted for run in EXTRAS[name](best, best_rgb, seeds)]
