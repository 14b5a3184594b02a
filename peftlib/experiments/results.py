"""Result rows: one file a run, gathered into one tidy table. And the check of a notebook's numbers."""

import hashlib
import json
import math
import warnings
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from peftlib.files import atomic_path, root

REFERENCE, RESULTS = "data/reference", "data/results"
STATUS = ("done", "failed")
# Columns of a tidy table, in order; a row a run and metric. What they hold is said in ``tidy``.
COLUMNS = (
    *("dataset", "task", "backbone", "weights", "method", "options", "decoder", "image_size", "epochs", "lr"),
    *("head_lr", "seed", "init", "stage", "split", "metric", "value", "headline", "tuned", "tuned_percent"),
    *("adapter_bytes", "step_ms", "peak_mb", "wall_s", "images", "device", "versions", "commit", "backbone_hash"),
    *("status", "error", "recipe", "key"),
)
_COUNTS = ("tuned", "adapter_bytes", "images")
_NUMBERS = (
    *("image_size", "epochs", "lr", "head_lr", "seed", "init", "value"),
    *("tuned_percent", "step_ms", "peak_mb", "wall_s"),
    *_COUNTS,
)
_RECIPE = (
    *("data", "bands", "folds", "tile", "train_tiles", "train_images", "val_images", "res", "weight_decay"),
    *("schedule", "warmup", "augment", "batch_size", "accumulate", "patience", "precision"),
    *("metadata", "unseen", "moved"),
)


def write_row(path: Path, row: dict) -> None:
    """Write a run's row, by rename: whole or not at all; with a digest, so that a changed digit is no other result."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(row | {"digest": _digest(row)}, indent=1))


def _digest(row: dict) -> str:
    facts = {name: value for name, value in row.items() if name != "digest"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def read_row(path: Path) -> dict | None:
    """A run's row; None where there is none, or, with a warning, where it is damaged."""
    try:
        row = json.loads(Path(path).read_text())
        if row["status"] not in STATUS or row["key"] != Path(path).stem or not isinstance(row["run"], dict):
            raise ValueError("no row of this run")
        if row["status"] == "done" and not row["metrics"]["val"]:
            raise ValueError("no metrics")
        if row.pop("digest", None) != _digest(row):
            raise ValueError("its contents are not those that were written")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        warnings.warn(f"{path} is damaged ({error}) and counts as missing", stacklevel=2)
        return None
    return row


def gather(folder: str | Path, keys: Iterable[str] | None = None) -> pd.DataFrame:
    """The rows in a folder as one tidy table; given keys, those of them alone and in their order."""
    folder = Path(folder)
    paths = sorted(folder.glob("[!.]*.json")) if keys is None else [folder / f"{key}.json" for key in keys]
    return tidy([row for row in map(read_row, paths) if row is not None])


def tidy(rows: Iterable[dict]) -> pd.DataFrame:
    """A row a run and metric, with ``COLUMNS``; a failed run is one row without metric, with its error.

    ``split`` and ``metric`` name a ``value``; ``headline`` marks the metric by which the data set is judged.
    ``options`` and ``recipe`` are JSON, the method's config and the rest of the run. ``step_ms`` is the median time of
    a training step, ``peak_mb`` the highest memory, ``wall_s`` the time of the run where it was last started,
    ``images`` how many trained.
    """
    table = []
    for row in rows:
        run = row["run"]
        facts = {name: run.get(name, row.get(name)) for name in COLUMNS if name in run or name in row}
        facts["options"] = json.dumps(run["options"], sort_keys=True)
        facts["recipe"] = recipe(run)
        facts["images"] = row.get("images", {}).get("train")
        facts["versions"] = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        if row["status"] == "failed":
            table.append(facts | {"split": "", "metric": "", "value": math.nan, "headline": False})
        for split, metrics in row.get("metrics", {}).items():
            for metric, value in metrics.items():
                known = {"split": split, "metric": metric, "value": value, "headline": metric == row["headline"]}
                table.append(facts | known)
    return pd.DataFrame(table, columns=list(COLUMNS))


def recipe(run: dict) -> str:
    """The rest of a run's facts, those without a column of their own, as JSON."""
    return json.dumps({name: run[name] for name in _RECIPE if name in run}, sort_keys=True)


def write_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Write a tidy table as CSV, sorted, for committing: without the IoU of single classes that are no headline."""
    kept = table[~table["metric"].str.startswith("iou_") | table["headline"].astype(bool)]
    kept = kept.astype(dict.fromkeys(_COUNTS, "Int64"))  # all digits, beside failed runs that have none too
    order = ["dataset", "backbone", "stage", "method", "options", "lr", "seed", "init", "key", "split", "metric"]
    path = Path(path)
    with atomic_path(path) as temporary:
        kept.sort_values(order, kind="stable").to_csv(temporary, index=False, float_format="%.6g")
    return path


def read_table(profile_or_path: str | Path) -> pd.DataFrame:
    """The committed rows of a profile, ``data/results/<profile>.csv``, or those of any such file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: columns are missing; which.
    """
    path = Path(profile_or_path)
    if path.suffix != ".csv":
        path = root() / RESULTS / f"{profile_or_path}.csv"
    texts = [name for name in COLUMNS if name not in (*_NUMBERS, "headline")]  # a commit may look like a number
    table = pd.read_csv(
        path, dtype=dict.fromkeys(texts, str), keep_default_na=False, na_values=dict.fromkeys(_NUMBERS, "")
    )
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise ValueError(f"{path} has no columns {missing}; is it a table of runs?")
    return table[list(COLUMNS)]


def check_reference(
    name: str,
    values: dict[str, float],
    profile: str,
    tolerance: float,
    update: bool = False,
    settings: dict | None = None,
) -> pd.DataFrame:
    """Compare a notebook's numbers with those committed in ``data/reference/<name>.csv``.

    Digits move with the processor's arithmetic, so text comparison would be too strict and no comparison too lax.

    Args:
        values: quantity -> number measured now.
        profile: numbers are committed for ``quick``; others are not compared.
        tolerance: largest absolute difference that is let through.
        update: write the numbers instead of comparing.
        settings: parameters that the numbers depend on, kept with them; numbers of others are not compared.

    Returns:
        columns quantity, reference, measured (empty where there is nothing to compare with).

    Raises:
        AssertionError: a number is missing, not finite, or further off than the tolerance; names each.
    """
    path = root() / Path(REFERENCE) / f"{name}.csv"
    measured = pd.Series(values, name="measured", dtype=float).rename_axis("quantity")
    head = f"# {json.dumps(settings)}\n" if settings is not None else ""
    if update and profile == "quick":
        with atomic_path(path) as temporary:
            temporary.write_text(head + measured.rename("reference").round(4).to_csv())
    if profile != "quick" or not path.is_file() or not path.read_text().startswith(head):
        print(f"not compared: {REFERENCE}/{name}.csv has no numbers for these parameters")
        return pd.DataFrame(columns=["quantity", "reference", "measured"])
    reference = pd.read_csv(path, index_col="quantity", comment="#")["reference"]
    table = pd.concat([reference, measured], axis=1).reset_index()
    off = [
        f"{row.quantity}: {row.measured:.4f}, committed {row.reference:.4f}"
        for row in table.itertuples()
        if not (math.isfinite(row.measured) and abs(row.measured - row.reference) <= tolerance)
    ]
    assert not off, f"{len(off)} of {len(table)} numbers differ by more than {tolerance}: " + "; ".join(off)
    print(f"all {len(table)} numbers within {tolerance} of {REFERENCE}/{name}.csv")
    return table
