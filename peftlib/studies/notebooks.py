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
from typing import Any

from peftlib.files import figures_dir, root, runs_dir

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
    cells = [c for c in _cells(notebook) if "parameters" in c.get("metadata", {}).get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{notebook.name} has {len(cells)} cells tagged 'parameters'; it needs one")
    try:
        lines = ast.parse("".join(cells[0]["source"])).body
    except SyntaxError as error:
        raise ValueError(f"{notebook.name}, parameters: not Python ({error})") from error
    declared = {}
    for node in lines:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
            raise ValueError(f"{notebook.name}, parameters, line {node.lineno}: write 'name: type = literal  # help'")
        name, kind = node.target.id, ast.unparse(node.annotation)
        if not _known(kind):
            raise ValueError(
                f"{notebook.name}, parameters: type {kind!r} of {name}; use {', '.join(_TYPES)}, list[int]"
            )
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            raise ValueError(f"{notebook.name}, parameters, line {node.lineno}: {name} is no literal") from None
        if not _is(default, kind):
            raise ValueError(f"{notebook.name}, parameters: default {default!r} of {name} is not of type {kind}")
        declared[name] = (kind, default)
    return declared


def _cells(notebook: Path) -> list[dict]:
    try:
        cells = json.loads(notebook.read_text())["cells"]
        if not all(isinstance(cell["source"], str | list) for cell in cells):
            raise TypeError("cells without source")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{notebook} is not a notebook; damaged? ({error})") from error
    return cells


def _known(kind: str) -> bool:
    """``int``, ``str`` ..., or a list or tuple of one of them, ``list[int]``."""
    base, _, member = kind.removesuffix("]").partition("[")
    return base in _TYPES and (not member or (base in ("list", "tuple") and member.split(",")[0] in _TYPES))


def _is(value: Any, kind: str) -> bool:
    """Whether a literal is of a declared type; an int is a float too, a bool is no int."""
    base, _, member = kind.removesuffix("]").partition("[")
    if type(value) is int and base == "float":
        return True
    alike = type(value) is _TYPES[base]
    return alike and (not member or all(_is(item, member.split(",")[0]) for item in value))


def read_parameters(notebook: Path, profile: str, settings: Mapping[str, str]) -> dict[str, object]:
    """Check and convert what the user set against what the notebook declares.

    Args:
        settings: name -> text, as from ``--set name=value``.

    Raises:
        ValueError: unknown profile or parameter, or a value of another type; the message lists what there is.
    """
    profile = settings.get("profile", profile)
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
    if kind == "str":
        return text
    value: Any
    try:
        value = {"true": True, "false": False}.get(text.lower()) if kind == "bool" else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if not _is(value, kind):
        raise ValueError(f"parameter {name}={text!r} is not of type {kind}")
    return float(value) if kind == "float" else value


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
        OSError: the copy cannot be written; names it or its folder.
    """
    paths = [find_notebook(name) for name in notebooks]
    profile = (settings or {}).get("profile", profile)  # --set profile=real is --profile real
    plans = [(path, read_parameters(path, profile, settings or {})) for path in paths]
    for variable in ("PEFTLIB_DATA", "PEFTLIB_WEIGHTS", "PEFTLIB_FIGURES", "PEFTLIB_RUNS"):
        if os.environ.get(variable):  # relative to the caller's folder, and the kernel runs in the notebook's
            os.environ[variable] = str(Path(os.environ[variable]).absolute())
    made = []
    for path, parameters in plans:
        result = (_unchanged(path, profile, parameters) if if_changed else None) or _run(path, profile, parameters)
        made.append(result)
        state = f"{result.seconds:6.1f} s" if result.ran else f"up to date (made in {result.seconds:.1f} s)"
        print(f"{path.stem:34s} {state}, {len(result.figures)} figure files", flush=True)
    return made


def _run(notebook: Path, profile: str, parameters: Mapping[str, object]) -> Made:
    import nbformat
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from papermill.exceptions import PapermillExecutionError

    target = runs_dir() / profile / notebook.name
    failed = target.with_suffix(".failed.ipynb")
    temporary = target.with_name(f".{notebook.stem}.{os.getpid()}.ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    before, clock = _figures(profile), time.perf_counter()
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
        figures = tuple(path for path, stamp in _figures(profile).items() if before.get(path) != stamp)
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
    except (RuntimeError, TimeoutError, NoSuchKernel) as error:  # it died, a cell took too long, or it is not here
        raise NotebookFailed(f"{notebook.name}: {type(error).__name__}: {error}") from error
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk's error says nothing of where
            error.filename = str(target)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _figures(profile: str) -> dict[Path, tuple[int, int]]:
    """Figures that are there -> when they were written, and their file number (a rename gives a new one)."""
    files = sorted(p for p in figures_dir(profile).glob("[!.]*") if p.suffix in (".png", ".pdf"))
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in files}


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
    sources = ["".join(cell["source"]) for cell in _cells(notebook)]
    seen = hashlib.sha256(json.dumps([sources, dict(parameters)], sort_keys=True).encode())
    package = Path(__file__).parents[1]
    files = [*sorted(package.rglob("*.py")), package.parent / "requirements.lock"]
    for path in files:
        if path.is_file():
            seen.update(path.name.encode() + path.read_bytes())
    return seen.hexdigest()
