"""Run notebooks with papermill: typed parameters, executed copies beside, no half file in the place of a good one.

Papermill only warns of an unknown parameter and takes whatever type it is given; here both are errors.
"""

import ast
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from peftlib.paths import figures_dir, root, runs_dir

PROFILES = ("quick", "real", "paper")
CELL_TIMEOUT = {"quick": 900}  # seconds a cell may take before it counts as hanging; other profiles train for hours
_TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "tuple": tuple, "dict": dict}


class NotebookFailed(Exception):
    """A notebook raised; the message names the notebook, the cell and the error."""


@dataclass(frozen=True)
class Made:
    """What one notebook gave: its executed copy, the figures it wrote, the seconds it took, whether it ran just now."""

    notebook: Path
    copy: Path
    figures: tuple[Path, ...]
    seconds: float
    ran: bool


def find_notebook(name: str | Path) -> Path:
    """A path, or the name of a notebook in ``notebooks/`` with or without ``.ipynb``, from any current directory."""
    folder = root() / "notebooks"
    candidates = [Path(name), folder / name, folder / f"{name}.ipynb"]
    for path in candidates:
        if path.is_file() and path.suffix == ".ipynb":
            return path.resolve()
    known = ", ".join(sorted(p.stem for p in folder.glob("*.ipynb"))) or "none"
    raise FileNotFoundError(f"no notebook {str(name)!r}; in {folder}: {known}")


def declared_parameters(notebook: Path) -> dict[str, tuple[str, object]]:
    """Name -> (type, default) of the cell tagged ``parameters``: lines ``name: type = literal  # help``.

    Raises:
        ValueError: no such cell, or a line of another form.
    """
    cells = [
        c for c in json.loads(notebook.read_text())["cells"] if "parameters" in c.get("metadata", {}).get("tags", [])
    ]
    if len(cells) != 1:
        raise ValueError(f"{notebook.name} has {len(cells)} cells tagged 'parameters'; it needs one")
    declared = {}
    for node in ast.parse("".join(cells[0]["source"])).body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
            raise ValueError(f"{notebook.name}, parameters, line {node.lineno}: write 'name: type = literal  # help'")
        kind = ast.unparse(node.annotation)
        if kind.split("[")[0] not in _TYPES:
            raise ValueError(f"{notebook.name}, parameters: type {kind!r} of {node.target.id}; use {sorted(_TYPES)}")
        declared[node.target.id] = (kind, ast.literal_eval(node.value))
    return declared


def read_parameters(notebook: Path, profile: str, settings: Mapping[str, str]) -> dict[str, object]:
    """Check and convert what the user set against what the notebook declares.

    Args:
        settings: name -> text, as from ``--set name=value``.

    Raises:
        ValueError: unknown profile or parameter, or a value of another type; the message lists what there is.
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; choose from {', '.join(PROFILES)}")
    declared = declared_parameters(notebook)
    unknown = [name for name in settings if name not in declared]
    if unknown:
        choices = ", ".join(f"{name}: {kind}" for name, (kind, _) in declared.items())
        raise ValueError(f"{notebook.name} has no parameter {', '.join(unknown)}; it has {choices}")
    values = {name: convert(name, declared[name][0], text) for name, text in settings.items()}
    return {"profile": profile} | values if "profile" in declared else values


def convert(name: str, kind: str, text: str) -> object:
    """Text -> a value of a declared type; ``1e-4`` is a float, ``3`` one too, ``3.5`` no int."""
    base = _TYPES[kind.split("[")[0]]
    if base is str:
        return text
    try:
        value = {"true": True, "false": False}.get(text.lower()) if base is bool else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if base is float and type(value) is int:
        value = float(value)
    if type(value) is not base:
        raise ValueError(f"parameter {name}={text!r} is not of type {kind}")
    return value


def run_notebooks(
    notebooks: Iterable[str | Path],
    profile: str = "quick",
    settings: Mapping[str, str] | None = None,
    if_changed: bool = False,
) -> list[Made]:
    """Run notebooks one after the other; a line each on standard output.

    Raises:
        ValueError, FileNotFoundError: before anything runs, when a name or a parameter is wrong.
        NotebookFailed: a cell raised.
    """
    paths = [find_notebook(name) for name in notebooks]
    plans = [(path, read_parameters(path, profile, settings or {})) for path in paths]
    made = []
    for path, parameters in plans:
        result = None
        if if_changed:
            result = _unchanged(path, profile, parameters)
        result = result or _run(path, profile, parameters)
        made.append(result)
        state = f"{result.seconds:6.1f} s" if result.ran else f"up to date (made in {result.seconds:.1f} s)"
        print(f"{path.stem:34s} {state}, {len(result.figures)} figure files", flush=True)
    return made


def _run(notebook: Path, profile: str, parameters: Mapping[str, object]) -> Made:
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    target = runs_dir() / profile / notebook.name
    failed = target.with_suffix(".failed.ipynb")
    temporary = target.with_name(f".{notebook.stem}.{os.getpid()}.ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    started, clock = time.time(), time.perf_counter()
    try:
        papermill.execute_notebook(
            str(notebook),
            str(temporary),
            parameters=dict(parameters),
            cwd=str(notebook.parent),
            progress_bar=sys.stderr.isatty(),
            execution_timeout=CELL_TIMEOUT.get(profile),
            extra_arguments=["--log-level=ERROR"],  # to the kernel: no warning about its own transport
        )
        seconds = time.perf_counter() - clock
        figures = _written_since(figures_dir(profile), started)
        document = nbformat.read(temporary, as_version=4)
        document.metadata["peftlib"] = {
            "digest": digest(notebook, parameters),
            "seconds": round(seconds, 1),
            "figures": [str(path) for path in figures],
        }
        nbformat.write(document, temporary)
        os.replace(temporary, target)
        failed.unlink(missing_ok=True)
        return Made(notebook, target, figures, seconds, ran=True)
    except PapermillExecutionError as error:
        os.replace(temporary, failed)  # to look into; a good copy of an earlier run stays
        raise NotebookFailed(
            f"{notebook.name}, cell [{error.exec_count}]: {error.ename}: {error.evalue}\n"
            f"{error.source.strip()}\n(executed up to there: {failed})"
        ) from error
    except RuntimeError as error:  # the kernel died, or a cell ran out of time
        raise NotebookFailed(f"{notebook.name}: {type(error).__name__}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _written_since(folder: Path, started: float) -> tuple[Path, ...]:
    """Figures of a run. One second of grace: file systems round times."""
    files = folder.glob("*.p[nd][gf]") if folder.is_dir() else ()
    return tuple(sorted(p for p in files if p.stat().st_mtime >= started - 1))


def _unchanged(notebook: Path, profile: str, parameters: Mapping[str, object]) -> Made | None:
    """The earlier run, if notebook, parameters, package and pins are the same and its figures are still there."""
    copy = runs_dir() / profile / notebook.name
    try:
        facts = json.loads(copy.read_text())["metadata"]["peftlib"]
        figures = tuple(Path(path) for path in facts["figures"])
    except (OSError, ValueError, KeyError):
        return None
    if facts["digest"] != digest(notebook, parameters) or not all(path.is_file() for path in figures):
        return None
    return Made(notebook, copy, figures, facts["seconds"], ran=False)


def digest(notebook: Path, parameters: Mapping[str, object]) -> str:
    """sha256 of all that can change a run: the notebook's sources, its parameters, the package, the pinned versions."""
    sources = ["".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"]]
    seen = hashlib.sha256(json.dumps([sources, dict(parameters)], sort_keys=True).encode())
    package = Path(__file__).parent
    files = [*sorted(package.rglob("*.py")), package.parent / "requirements.lock"]
    for path in files:
        if path.is_file():
            seen.update(path.name.encode() + path.read_bytes())
    return seen.hexdigest()
