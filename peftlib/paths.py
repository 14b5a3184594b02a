"""Where things lie on disk: one root, so that everything works from any current directory."""

import os
from pathlib import Path

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
