"""The study of time series: ways to give an RGB-pretrained ViT four dates of fields that no single date tells apart.

rows = study(execute)
scores(rows)
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd

from peftlib.data.simulated.phenology import DAYS
from peftlib.deflect.time_series import series_bands
from peftlib.experiments.config import Run
from peftlib.methods import Deflect, Method
from peftlib.sensors.bands import SENSORS
from peftlib.studies.comparison import LEARNING_RATES, SEEDS, SETTINGS, finals, inputs, rgb_only, with_rate

NAME = "series"  # of the committed rows
WITHOUT_DAYS = series_bands(tuple(SENSORS["sentinel2"]), len(DAYS), day=False)
# Epochs over scenes; over single dates, four to a scene, a fourth of them: all are trained on as many images.
EPOCHS = 12
_LORA, _DEFLECT = inputs("lora")[0], Deflect()
_LORA_RGB = rgb_only(_LORA) or _LORA
# Name -> method, view of the data, and further fields of the run; from those that see least to those that see most.
APPROACHES: dict[str, tuple[Method, str, dict]] = {
    "LoRA, RGB of the best date": (_LORA_RGB, "best", {}),
    "LoRA, the best date": (_LORA, "best", {}),
    "DEFLECT, the best date": (_DEFLECT, "best", {}),
    "LoRA, mean over dates": (_LORA, "each", {}),
    "DEFLECT, mean over dates": (_DEFLECT, "each", {}),
    "DEFLECT, set without days": (_DEFLECT, "series", {"bands": WITHOUT_DAYS}),
    "LoRA, mean over dates with days": (_LORA, "each", {"metadata": ("date",)}),
    "DEFLECT, mean over dates with days": (_DEFLECT, "each", {"metadata": ("date",)}),
    "LoRA, dates as bands": (_LORA, "series", {}),
    "DEFLECT, sequence of dates": (replace(_DEFLECT, series="sequence"), "series", {}),
    "DEFLECT, set of dates": (_DEFLECT, "series", {}),
}
# What can be known of the six calendars, in %, and which approaches see no more than that.
KNOWABLE = {"RGB": 100 / 6, "one date": 200 / 6, "dates without order": 50.0, "dates and days": 100.0}
_SEEN = ["RGB", *["one date"] * 2, *["dates without order"] * 3, *["dates and days"] * 5]
SEES = dict(zip(APPROACHES, _SEEN, strict=True))


def setting(name: str, length: int = 192, epochs: int = EPOCHS, **changes) -> Run:
    """The run of an approach, its learning rate still to be chosen.

    Args:
        name: one of ``APPROACHES``.
        length: scenes that train, and that test.
        epochs: over scenes.
        changes: of further fields of the run.
    """
    if name not in APPROACHES:
        raise ValueError(f"approach {name!r}; choose from {', '.join(APPROACHES)}")
    method, view, fields = APPROACHES[name]
    (quick,) = SETTINGS["quick"]
    many = len(DAYS) if view == "each" else 1
    data = {"length": length, "size": quick.data["size"], "view": view}
    small = {"epochs": max(1, epochs // many), "val_images": many * quick.val_images}
    return replace(quick, dataset="phenology", method=method, data=data, **(small | fields | changes))


def searches(names: Sequence[str] = tuple(APPROACHES), **changes) -> list[Run]:
    """The learning rates of each approach, as many as in the comparison of methods."""
    runs = [setting(name, **changes) for name in names]
    return [with_rate(replace(run, stage="search"), lr) for run in runs for lr in LEARNING_RATES[run.method.name]]


def chosen(rows: pd.DataFrame, names: Sequence[str] = tuple(APPROACHES), **changes) -> dict[str, Run]:
    """Each approach with the rate of lowest validation loss.

    Not of highest mIoU: one date leaves several classes equally likely, and which of them is named means nothing.
    """
    loss = rows[rows["stage"].eq("search") & rows["split"].eq("val") & rows["metric"].eq("loss")]
    loss = loss.set_index("key")["value"]
    best = {}
    for name in names:
        tried = {run.key: run for run in searches([name], **changes)}
        best[name] = replace(tried[loss.reindex(list(tried)).idxmin()], stage="final")
    return best


def study(
    execute: Callable[[list[Run]], pd.DataFrame],
    names: Sequence[str] = tuple(APPROACHES),
    seeds: Sequence[int] = SEEDS,
    **changes,
) -> pd.DataFrame:
    """Searches and finals; ``execute`` does runs and gives their rows (``peftlib.experiments.grid.execute``)."""
    searched = execute(searches(names, **changes))
    best = chosen(searched, names, **changes)
    return pd.concat([searched, execute(finals(best.values(), seeds))], ignore_index=True)


def again(names: Sequence[str], seeds: Sequence[int], rows: pd.DataFrame, **changes) -> list[Run]:
    """Final runs with other lengths or epochs, at the rates that searches in ``rows`` chose."""
    rates = {name: run.lr for name, run in chosen(rows, names).items()}
    return finals([with_rate(setting(name, **changes), rates[name]) for name in names], seeds)


def scores(rows: pd.DataFrame, metric: str = "fields") -> pd.DataFrame:
    """A row a finished final run: columns approach, sees, seed, tuned, lr, percent.

    Args:
        metric: ``"fields"`` or ``"scene_miou"``, see ``peftlib.experiments.calendars``.
    """
    kept = rows[rows["stage"].eq("final") & rows["split"].eq("test") & rows["metric"].eq(metric)]
    facts = {name: setting(name).facts() for name in APPROACHES}
    of = {_seen(fact["method"], fact["options"], fact): name for name, fact in facts.items()}
    runs = zip(kept["method"], kept["options"].map(json.loads), kept["recipe"].map(json.loads), strict=True)
    names = [of[_seen(*run)] for run in runs]
    table = kept[["seed", "tuned", "lr"]].assign(approach=names, percent=100 * kept["value"].astype(float))
    order = {name: place for place, name in enumerate(APPROACHES)}
    table = table.sort_values(["approach", "seed"], key=lambda c: c.map(order) if c.name == "approach" else c)
    return table.assign(sees=table["approach"].map(SEES)).reset_index(drop=True)


def _seen(method: str, options: dict, run: dict) -> str:
    """What tells approaches apart: the method, and what it reads."""
    return json.dumps([method, options, run["data"]["view"], run["bands"], run.get("metadata", [])], sort_keys=True)
