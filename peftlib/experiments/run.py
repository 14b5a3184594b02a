"""One experiment run: adapted, trained, scored, measured, and its row written."""

import importlib.metadata
import platform
import resource
import shutil
import signal
import subprocess
import threading
import time
import traceback
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import median

import lightning
import torch
from timm.models.vision_transformer import VisionTransformer

from peftlib.backbones.loading import load_backbone
from peftlib.data import EarthData
from peftlib.experiments.config import VERSION, Experiment
from peftlib.experiments.evaluations import evaluate, rgb_drift
from peftlib.experiments.results import DONE, FAILED, read_row, write_row
from peftlib.model.adapted_vit import adapt, count_parameters
from peftlib.model.adapter_file import adapter_bytes
from peftlib.model.precision import BF16_FROZEN, FLOAT32
from peftlib.training.base import RECIPE
from peftlib.training.fit import LAST, fit
from peftlib.training.tasks import Classification, Segmentation

PACKAGES = ("torch", "timm", "lightning", "numpy", "torchmetrics")
SAVE_EVERY = 100  # steps between checkpoints, at ends of epochs
_ALONE = threading.Lock()  # runs draw from the process's own random numbers: one at a time


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Where and on what an experiment runs. Nothing here changes a result, but for the last digits of other hardware.

    ``accelerator`` is that of Lightning's ``Trainer``, ``workers`` processes of each run read images ahead. ``keep``
    keeps the last checkpoint, ``work/<key>/last.ckpt``.
    """

    accelerator: str = "auto"
    workers: int = 0
    keep: bool = False


def run_experiment(
    experiment: Experiment, folder: str | Path, resources: Resources = Resources(), key: str | None = None
) -> dict:
    """Run an experiment unless it is finished, resuming where it was stopped. Returns its row.

    An error makes a row too, with ``status`` "failed" and the error; only an interrupt comes through.

    Args:
        experiment: what to do; resources: where and on what.
        folder: of the rows, ``<key>.json``; of ``predictions/<key>.npz``, see
            ``peftlib.experiments.evaluations.evaluate``; and of work in progress, ``work/<key>/``. One grid at a time.
        key: of the experiment where it was planned; another one here means other data or weights, and fails.
    """
    folder, key = Path(folder), key or experiment.key
    path, work = folder / f"{key}.json", folder / "work" / key
    with _ALONE:
        row = read_row(path)
        if row is not None and row["status"] == DONE:
            return row
        clock = time.perf_counter()
        row = {"key": key, "experiment": experiment.to_dict(), "version": VERSION} | _surroundings()
        try:
            if experiment.key != key:
                raise ValueError(f"the data or weights here are not those that {key} was planned with")
            row |= _train_and_evaluate(experiment, work, folder / "predictions" / f"{key}.npz", resources)
            row |= {"status": DONE, "error": ""}
        except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second, and turns off Ctrl-C
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
        except Exception as error:
            row |= {"status": FAILED, "error": _in_one_line(error)}
        write_row(path, row := row | {"wall_s": round(time.perf_counter() - clock, 2)})
        if resources.keep and row["status"] == DONE:
            for other in (other for other in work.iterdir() if other.name != LAST):
                other.unlink()
        else:
            shutil.rmtree(work, ignore_errors=True)  # of a failed run too: what it left may be the reason
    return row


def _train_and_evaluate(experiment: Experiment, work: Path, predictions: Path, resources: Resources) -> dict:
    train, val, test = experiment.parts()
    unseen = experiment.unseen_part()
    data = EarthData(train, val, test, experiment.batch_size, resources.workers, experiment.seed, unseen=unseen)
    task, watch = build_task(experiment, data), Stopwatch()
    precision = "32-true" if experiment.precision == BF16_FROZEN else experiment.precision
    metrics = fit(
        task, data, work, experiment.steps, experiment.seed, precision, experiment.accumulate,
        resources.accelerator, save_every=SAVE_EVERY, callbacks=[watch], log=False,
    )  # fmt: skip
    task.to(watch.device)  # Lightning leaves it on the CPU
    if test is not None:
        metrics["test"] |= evaluate(task, data.test_dataloader(), precision, predictions)
    if unseen is not None:
        metrics["unseen"] |= evaluate(task, data.unseen_split().test_dataloader(), precision)
    if experiment.rgb_drift and test is not None:
        metrics["rgb"] = rgb_drift(task.model, _backbone(experiment), test)
    counts = count_parameters(task.model)
    return {
        "metrics": metrics,
        "primary_metric": train.primary_metric or task.monitor,
        "task": train.task,
        "images": len(train),
        "backbone_hash": task.model.backbone_hash,
        "adapter_bytes": adapter_bytes(task.model),
        **{f"{part}_parameters": counts[part] for part in ("encoder", "input", "method")},
        **watch.measured(),
    }


def build_task(experiment: Experiment, data: EarthData) -> Classification | Segmentation:
    """The task of an experiment before training: an adapted ViT, its normalisation fitted on ``data``, and a head.

    ValueError where images come without the metadata that are asked for.
    """
    train, vit = data.train, _backbone(experiment)
    lightning.seed_everything(experiment.init, verbose=False)
    if experiment.metadata and not (there := set(train[0]["meta"])) & set(experiment.metadata):
        raise ValueError(f"metadata={experiment.metadata}, and images of {experiment.dataset} have {sorted(there)}")
    model = adapt(
        vit, experiment.method, train.band_set, image_size=experiment.image_size, input=experiment.input,
        nodata="zero" if train.nodata == "nan" else "error", metadata=experiment.metadata,
        precision=BF16_FROZEN if experiment.precision == BF16_FROZEN else FLOAT32,
    )  # fmt: skip
    model.fit_normalization(data.train_dataloader())
    recipe = {name: getattr(experiment, name) for name in RECIPE}
    if train.task == "segmentation":
        known = {"decoder": experiment.decoder, "ignore_index": train.ignore_index}
        return Segmentation(model, train.classes, **known, **recipe)
    return Classification(model, train.classes, **recipe)


def _backbone(experiment: Experiment) -> VisionTransformer:
    """The backbone, random weights drawn from ``init``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.init)
        return load_backbone(experiment.backbone, experiment.weights, experiment.image_size, experiment.res)


class Stopwatch(lightning.Callback):
    """Where a run is done, and the time between the ends of its training steps."""

    def __init__(self):
        self.device, self.ends, self.waits = torch.device("cpu"), [], []

    def setup(self, trainer: lightning.Trainer, task: lightning.LightningModule, stage: str) -> None:
        self.device = trainer.strategy.root_device
        if stage == "fit" and self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def on_train_batch_start(self, *_) -> None:
        if self.ends:
            self.waits.append(time.perf_counter() - self.ends[-1])

    def on_train_batch_end(self, *_) -> None:
        self.ends.append(time.perf_counter())

    def measured(self) -> dict[str, float | str | None]:
        """``device``; ``step_ms``, median time of a step and of reading its batch; ``peak_mb`` of GPU or process.

        ``reading`` is the share of that time in which training waited for images. It is in the run's file alone.

        None where fewer than two steps were trained in this process: the run had been stopped after its training.
        """
        steps = [1e3 * (end - start) for start, end in pairwise(self.ends)]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
        found = {"step_ms": round(median(steps), 3), "peak_mb": round(peak / 2**20, 1)} if steps else {}
        found |= {"reading": round(1e3 * sum(self.waits) / sum(steps), 4)} if steps else {}
        return {"device": device_name(self.device), "step_ms": None, "peak_mb": None} | found


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    processor = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    return f"{device.type} ({processor}, {torch.get_num_threads()} threads)"


@lru_cache(maxsize=1)
def _surroundings() -> dict[str, str]:
    """Versions and commit that a row was made with."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}
    command, here = ["git", "describe", "--always", "--dirty"], Path(__file__).parent
    try:
        commit = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    return {"versions": ", ".join(f"{name} {version}" for name, version in versions.items()), "commit": commit}


def _in_one_line(error: Exception) -> str:
    """``ValueError: message (file.py:12)``."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" ({Path(last[0].filename).name}:{last[0].lineno})" if last else ""
    return " ".join(f"{type(error).__name__}: {error}{place}".split())[:500]
