"""Folders, whole writes, hashes, state dicts that are read without unpickling code, and optional libraries."""

import argparse
import hashlib
import os
import textwrap
import uuid
from collections.abc import Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path, PosixPath, WindowsPath
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

_SOURCE = Path(__file__).resolve().parents[1]


def root() -> Path:
    """The repository in a checkout, else a folder of the user's own (``~/.cache/peftlib``)."""
    if (_SOURCE / "notebooks").is_dir() and (_SOURCE / "pyproject.toml").is_file():
        return _SOURCE
    return Path.home() / ".cache" / "peftlib"


def data_dir() -> Path:
    """Data sets: ``$PEFTLIB_DATA``, or ``data/`` under the root."""
    return Path(os.environ.get("PEFTLIB_DATA") or root() / "data")


def weights_dir() -> Path:
    """Backbone weights: ``$PEFTLIB_WEIGHTS``, or ``data/weights/`` under the root. Needs to be writable once."""
    return Path(os.environ.get("PEFTLIB_WEIGHTS") or root() / "data" / "weights")


def figures_dir(profile: str) -> Path:
    """Figures of a profile: ``$PEFTLIB_FIGURES/<profile>``, or ``figures/<profile>`` under the root."""
    return Path(os.environ.get("PEFTLIB_FIGURES") or root() / "figures") / profile


def runs_dir() -> Path:
    """Executed notebooks: ``$PEFTLIB_RUNS``, or ``runs/`` under the root."""
    return Path(os.environ.get("PEFTLIB_RUNS") or root() / "runs")


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes of tensors, in the order of their names. Same weights, same hash."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if not tensor.is_meta:
            digest.update(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def atomic_path(path: Path):
    """A temporary path beside ``path`` that takes its place only if the block ends well: no half file is ever seen.

    OSError: it cannot be written; names ``path`` or its folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except SafetensorError as error:
        raise OSError(f"could not write {path} ({error})") from error
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk's error says nothing of where
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def readable(path: str | Path, kind: str, cure: str = ""):
    """While a file is read: FileNotFoundError where there is none, ValueError in place of what libraries raise."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no {kind} at {path}")
    try:
        yield
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, LookupError, UnpicklingError) as error:
        raise ValueError(f"{path} is no whole {kind}; truncated or damaged?{cure} ({error})") from error


def load_state(path: str | Path, entry: str | None = None) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors``, or from ``.pt``/``.pth`` without unpickling code.

    ``entry``: where a training checkpoint holds the state dict beside other things; a file without it is one itself.
    Errors are those of ``readable``; ValueError too for what is no plain dict of tensors.
    """
    with readable(path, "weights file"):
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace, PosixPath, WindowsPath]):  # a run's arguments
            state = torch.load(path, map_location="cpu", weights_only=True)
    if entry is not None and isinstance(state, dict) and isinstance(state.get(entry), dict):
        state = state[entry]
    plain = isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not plain:
        kind = list(state)[:5] if isinstance(state, dict) else type(state).__name__
        wanted = "" if entry is None else f", at its top or in its entry {entry!r}"
        raise ValueError(f"{path} holds no plain dict name -> tensor{wanted} (found {kind})")
    return state


def load_strictly(module: torch.nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """``load_state_dict``; ValueError names what is missing, unexpected or of another shape, and where it came from."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        found = [textwrap.shorten(line, 250, placeholder=" ...") for line in str(error).splitlines()[1:9]]
        raise ValueError(f"{source} does not fit {type(module).__name__}: {'; '.join(found)}") from None


def optional(module: str, extra: str = "geo"):
    """A module of an optional extra; some take seconds to import."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} needs the optional extra: pip install 'peftlib[{extra}]' ({error})") from error
