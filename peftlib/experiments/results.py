"""Result rows: one JSON file a run while runs are done; two tables a study, runs and their metrics."""

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from peftlib.files import atomic_path, root

RESULTS = "data/results"
DONE, FAILED = "done", "failed"
METRIC_COLUMNS = ("key", "split", "metric", "value")
_COLUMNED = (  # fields of an experiment that have columns of their own
    *("backbone", "weights", "input", "input_options", "method", "options", "decoder", "image_size", "fold", "folds"),
    *("repeat", "seed", "init", "steps", "batch_size", "input_lr", "lr", "head_lr", "precision"),
)
_COUNTS = ("images", "encoder_parameters", "input_parameters", "method_parameters", "adapter_bytes")
_MEASURED = (*_COUNTS, "step_ms", "peak_mb", "wall_s", "device", "versions", "commit", "backbone_hash", "version")
RUN_COLUMNS = ("key", "role", "dataset", "task", *_COLUMNED, "config", "primary_metric", *_MEASURED, "status", "error")
_NUMBERS = (*_COLUMNED[7:-1], *_COUNTS, "version", "step_ms", "peak_mb", "wall_s")
_TEXTS = tuple(name for name in RUN_COLUMNS if name not in _NUMBERS)


# --- a file a run ---


def write_row(path: Path, row: Mapping) -> None:
    """Write a run's row by rename: whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(row, indent=1))


def read_row(path: Path) -> dict | None:
    """A run's row; None where there is none, or, with a warning, where it is damaged."""
    try:
        row = json.loads(path.read_text())
        whole = row["metrics"]["val"] if row["status"] == DONE else row["status"] == FAILED
        if whole and row["key"] == path.stem and row["experiment"]:
            return row
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        pass
    warnings.warn(f"{path} is damaged and counts as missing", stacklevel=2)
    return None


def tables(rows: Iterable[Mapping]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows -> runs (a row a run and role) and metrics (a row a run, split and metric).

    ``config`` is JSON, the fields of the experiment without a column of their own. ``step_ms`` is the median time of a
    training step, ``peak_mb`` the highest memory, ``wall_s`` the time of the run where it was last started, ``images``
    how many trained. A failed run has no metrics; ``error`` says why.
    """
    runs: list[dict] = []
    metrics: dict[tuple[str, str, str], float] = {}
    for row in rows:
        fields = dict(row["experiment"])
        facts = {name: fields.pop(name) for name in ("role", "dataset", *_COLUMNED)}
        facts |= {name: json.dumps(facts[name], sort_keys=True) for name in ("input_options", "options")}
        facts["config"] = json.dumps(fields, sort_keys=True)
        runs.append(facts | {name: value for name, value in row.items() if name in RUN_COLUMNS})
        for split, values in row.get("metrics", {}).items():
            metrics |= {(row["key"], split, metric): value for metric, value in values.items()}
    table = pd.DataFrame([(*place, value) for place, value in metrics.items()], columns=list(METRIC_COLUMNS))
    return _typed(pd.DataFrame(runs, columns=list(RUN_COLUMNS))), table


def experiment_fields(run: Mapping) -> dict:
    """A row of the table of runs -> what ``Experiment.from_dict`` takes."""
    fields = json.loads(run["config"]) | {"role": run["role"], "dataset": run["dataset"]}
    fields |= {name: run[name].item() if hasattr(run[name], "item") else run[name] for name in _COLUMNED}
    return fields | {name: json.loads(run[name]) for name in ("input_options", "options")}


# --- a table a study ---


def study_folder(name_or_folder: str | Path) -> Path:
    """``data/results/<study>`` for a bare name, else the folder itself."""
    path = Path(name_or_folder)
    return root() / RESULTS / path if path.name == str(name_or_folder) else path


def write_study(runs: pd.DataFrame, metrics: pd.DataFrame, folder: str | Path) -> Path:
    """Write both tables as CSV, sorted and by rename, for committing."""
    folder = study_folder(folder)
    order = ["role", "dataset", "backbone", "input", "input_options", "method", "options", "lr", "repeat", "fold"]
    tables = {
        "metrics.csv": metrics.sort_values(["key", "split", "metric"])[list(METRIC_COLUMNS)],
        "runs.csv": _typed(runs).sort_values([*order, "seed", "init", "key"], kind="stable")[list(RUN_COLUMNS)],
    }
    for name, table in tables.items():
        with atomic_path(folder / name) as temporary:
            table.to_csv(temporary, index=False, float_format="%.6g")
    return folder


def read_study(name_or_folder: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs and metrics of a study, by its name or from any folder with both tables.

    Raises:
        FileNotFoundError: no such file; ValueError: columns are missing; which.
    """
    folder, found = study_folder(name_or_folder), []
    for name, columns in (("runs.csv", RUN_COLUMNS), ("metrics.csv", METRIC_COLUMNS)):
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"no {path}")
        texts = dict.fromkeys((*_TEXTS, "split", "metric"), str)  # a commit may look like a number
        numbers = [column for column in columns if column not in texts]
        table = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=dict.fromkeys(numbers, ""))
        if missing := [column for column in columns if column not in table]:
            raise ValueError(f"{path} has no columns {missing}; is it a table of a study?")
        found.append(table[list(columns)])
    return _typed(found[0]), found[1]


def _typed(runs: pd.DataFrame) -> pd.DataFrame:
    """Counts with all their digits, beside failed runs that have none; texts that are never missing."""
    texts = {name: runs[name].fillna("").astype(str) for name in _TEXTS}
    return runs.assign(**texts).astype(dict.fromkeys((*_COUNTS, "version"), "Int64"))


def scores(runs: pd.DataFrame, metrics: pd.DataFrame, split: str = "test", metric: str | None = None) -> pd.DataFrame:
    """Finished runs with what they scored: columns ``metric`` and ``percent``, 100 times its value.

    ``metric=None`` is each run's ``primary_metric``. Runs without it, or with NaN, are left out.
    """
    done = runs[runs["status"] == DONE]
    wanted = done.assign(metric=done["primary_metric"] if metric is None else metric)
    found = wanted.merge(metrics[metrics["split"] == split].drop(columns="split"), on=["key", "metric"])
    found = found.assign(percent=100 * found["value"].astype(float)).drop(columns="value")
    return found[found["percent"].notna()].reset_index(drop=True)
