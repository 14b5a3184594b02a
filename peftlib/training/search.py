"""search_lr: learning rates that validate best, by short trainings."""

import warnings
from copy import copy, deepcopy
from pathlib import Path

from peftlib.data.datamodule import EarthData
from peftlib.training.base import Task
from peftlib.training.fit import fit


def search_lr(task: Task, data: EarthData, folder: str | Path, steps: int = 100, **options) -> dict[str, float]:
    """Try the ``learning_rates`` of a task's input, then those of its method, and give it the best.

    A trial is a short ``fit`` of a copy, judged by its monitor in validation; what is to be tested is not looked at.
    Rates of the method are tried with the best ``input_lr``. Trials of so many steps each are kept in the folder: a
    repeated call repeats none. Options are those of ``fit``. Warns where the best lies at an end of its range.
    Returns ``{"input_lr": ..., "lr": ...}``, without the rate of what has none.
    """
    data, best = copy(data), {}
    data.test = data.unseen = None
    for name, part in (("input_lr", "input"), ("lr", "method")):
        rates, scores = getattr(task.model, part).learning_rates, {}
        for rate in rates if task.model.tuned_parts()[part] else ():
            trial = deepcopy(task)
            setattr(trial, name, rate)
            place = Path(folder) / f"input_lr={trial.input_lr:g},lr={trial.lr:g}"
            scores[rate] = fit(trial, data, place, steps, log=False, **options)["val"][task.monitor]
            print(f"{name}={rate:g}: {task.monitor} {scores[rate]:.4g}", flush=True)
        if scores:
            best[name] = max(scores, key=scores.__getitem__)
            setattr(task, name, best[name])
            if best[name] in (rates[0], rates[-1]):
                warnings.warn(f"the best {name}={best[name]:g} is an end of {rates}; try beyond it", stacklevel=2)
    return best
