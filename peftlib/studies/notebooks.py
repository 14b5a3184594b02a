"""Run notebooks with papermill, and compare their numbers with those that are committed.

Papermill only warns of an unknown parameter and takes a value of any type; here both are errors.
"""

import ast
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from peftlib.files import atomic_path, root, runs_dir

PROFILES = ("quick", "real", "paper")


def find_notebook(name: str | Path) -> Path:
    """A path, or the name of a notebook in ``notebooks/`` with or without ``.ipynb``, from any current directory."""
    folder = root() / "notebooks"
    for path in (Path(name), folder / name, folder / f"{name}.ipynb"):
        if path.is_file() and path.suffix == ".ipynb":
            return path.resolve()
    known = ", ".join(sorted(p.stem for p in folder.glob("*.ipynb"))) or "none"
    raise FileNotFoundError(f"no notebook {str(name)!r}; in {folder}: {known}")


def declared_parameters(notebook: Path) -> dict[str, Any]:
    """Name -> default of the cell tagged ``parameters``. ValueError: no such cell, a default that is no literal."""
    from papermill import inspect_notebook

    try:
        found = inspect_notebook(notebook)
    except Exception as error:  # nbformat and papermill have a dozen kinds for a damaged file
        raise ValueError(f"{notebook} is not a notebook; damaged? ({error})") from error
    if not found:
        raise ValueError(f"{notebook.name} has no cell tagged 'parameters' with lines 'name: type = literal  # help'")
    try:
        return {name: ast.literal_eval(parameter["default"]) for name, parameter in found.items()}
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"{notebook.name}: defaults of parameters must be literals ({error})") from error


def convert(name: str, default: object, text: str) -> object:
    """Text -> a value of the kind of a default: ``3`` is a float too, ``3.5`` no int. Else ValueError."""
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text.capitalize() if isinstance(default, bool) else text)
    except (ValueError, SyntaxError):
        value = None
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        raise ValueError(f"parameter {name}={text!r} is no {type(default).__name__}; its default is {default!r}")
    return value


def read_parameters(notebook: Path, profile: str, settings: Mapping[str, str]) -> dict[str, object]:
    """Check ``settings``, name -> text, against what the notebook declares. ValueError: lists what there is."""
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; choose from {', '.join(PROFILES)}")
    declared = declared_parameters(notebook)
    if unknown := ", ".join(name for name in settings if name not in declared):
        choices = ", ".join(f"{name} = {default!r}" for name, default in declared.items())
        raise ValueError(f"{notebook.name} has no parameter {unknown}; it has {choices}")
    values = {name: convert(name, declared[name], text) for name, text in settings.items()}
    return {"profile": profile} | values if "profile" in declared else values


def run_notebooks(names: Iterable[str | Path], profile: str, settings: Mapping[str, str]) -> None:
    """Run notebooks into ``runs/<profile>/``, and print how long each took.

    Raises:
        ValueError, FileNotFoundError: before anything runs, when a name or a parameter is wrong.
        ValueError: a cell raised, or the kernel died; one line names the notebook, the cell and the error.
    """
    profile = settings.get("profile", profile)  # --set profile=real is --profile real
    plans = [(path, read_parameters(path, profile, settings)) for path in map(find_notebook, names)]
    for variable in ("PEFTLIB_DATA", "PEFTLIB_WEIGHTS", "PEFTLIB_FIGURES", "PEFTLIB_RUNS"):
        if os.environ.get(variable):  # relative to the caller's folder, and the kernel runs in the notebook's
            os.environ[variable] = str(Path(os.environ[variable]).absolute())
    for path, parameters in plans:
        copy, start = runs_dir() / profile / path.name, time.perf_counter()
        _run(path, copy, parameters)
        print(f"{path.stem:34s} {time.perf_counter() - start:6.1f} s", flush=True)


def _run(notebook: Path, copy: Path, parameters: dict[str, object]) -> None:
    """Execute a notebook; its copy takes its place by rename. One that fails is kept beside it."""
    import papermill

    failed = copy.with_suffix(".failed.ipynb")
    failed.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            notebook, failed, parameters, cwd=notebook.parent,
            progress_bar={"desc": notebook.stem, "mininterval": 0.1 if sys.stderr.isatty() else 30},
            stderr_file=sys.stderr,  # warnings, and progress of trainings and grids
            stdout_file=None if copy.parent.name == "quick" else sys.stderr,  # of hours: plan, time left
            extra_arguments=["--log-level=CRITICAL"],  # to the kernel: nothing about its own transport
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        what = " ".join(f"{error.ename}: {error.evalue}".split())
        raise ValueError(f"{notebook.name}, cell [{error.exec_count}]: {what} (see {failed})") from error
    except KeyboardInterrupt:
        logging.disable()  # nbclient would mourn its kernel behind the last line
        raise KeyboardInterrupt(f"stopped in {notebook.name} (see {failed})") from None
    except (RuntimeError, LookupError) as error:  # the kernel died, no such kernel
        raise ValueError(f"{notebook.name}: {type(error).__name__}: {error}") from error
    failed.replace(copy)


def check_reference(
    name: str, values: dict[str, float], profile: str, tolerance: float, update: bool, settings: dict
) -> pd.DataFrame:
    """Compare a notebook's numbers with ``data/reference/<name>.csv``, which holds those of the profile ``quick``.

    Args:
        values: quantity -> number measured now; ``update`` writes them first.
        tolerance: largest absolute difference that is let through: digits move with the processor's arithmetic.
        settings: parameters that the numbers depend on, kept with them; numbers of others are not compared.

    Returns:
        columns reference, measured; empty if not compared. AssertionError: one is missing, not finite, further off.
    """
    path, head = root() / "data" / "reference" / f"{name}.csv", f"# {json.dumps(settings)}\n"
    measured = pd.Series(values, dtype=float).rename_axis("quantity")
    if update and profile == "quick":
        with atomic_path(path) as temporary:
            temporary.write_text(head + measured.rename("reference").round(4).to_csv())
    if profile != "quick" or not path.is_file() or not path.read_text().startswith(head):
        print(f"not compared: data/reference/{name}.csv has no numbers for these parameters")
        return pd.DataFrame()
    reference = pd.read_csv(path, index_col="quantity", comment="#")["reference"]
    table = pd.DataFrame({"reference": reference, "measured": measured})
    off = table[~((table["reference"] - table["measured"]).abs() <= tolerance)]
    assert off.empty, f"{len(off)} of {len(table)} numbers differ by more than {tolerance}:\n{off.to_string()}"
    print(f"all {len(table)} numbers within {tolerance} of data/reference/{name}.csv")
    return table
