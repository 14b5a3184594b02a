"""One run done: adapted, trained, scored, measured, and its row written."""

import fcntl
import importlib.metadata
import os
import platform
import resource
import shutil
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import lightning
import torch

from peftlib.backbones.loading import load_backbone
from peftlib.data import EarthData
from peftlib.experiments.calendars import calendar_scores
from peftlib.experiments.config import NAMED_WEIGHTS, Run
from peftlib.experiments.evaluations import moved
from peftlib.experiments.metamers import pair_scores
from peftlib.experiments.results import read_row, write_row
from peftlib.model.adapted_vit import AdaptedViT, adapt, count_parameters
from peftlib.model.adapter_file import adapter_bytes
from peftlib.training.fit import BEST, fit
from peftlib.training.tasks import Classification, Segmentation

PACKAGES = ("torch", "timm", "lightning", "numpy", "torchmetrics")
# The metric that a data set is judged by, and its best epoch chosen by, where it is not its task's own.
HEADLINES = {"burn_scars": "iou_burnt"}
# Tests that a data set has of its own, by its name and task: what a trained task scores on images of a loader.
OWN_TESTS: dict[tuple[str, str], Callable] = {
    ("spectral_scenes", "segmentation"): pair_scores,
    ("phenology", "segmentation"): lambda task, loader: calendar_scores(task, loader, loader.dataset.view),
}
_ALONE = threading.Lock()  # runs draw from the process's own random numbers: one at a time


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and on what a run is done. Nothing here changes a result, but for the last digits of other hardware.

    Attributes:
        accelerator, devices, strategy: as for Lightning's ``Trainer``; several devices share each batch.
        workers: processes of each run that read images ahead; 0 reads in its own.
        threads: of PyTorch on the CPU; None leaves it.
        keep: keep the best checkpoint, ``work/<key>/best.ckpt``, of runs that are done.
    """

    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    workers: int = 0
    threads: int | None = None
    keep: bool = False


def perform(run: Run, key: str, folder: str | Path, place: Place = Place(), attempt: str = "") -> dict:
    """Do a run unless it is done, going on where it was stopped. Returns its row, which is in ``folder`` by then.

    An error makes a row too, with ``status`` "failed" and the error; only an interrupt comes through.

    Args:
        run: what to do.
        key: of the run where it was planned; another one here means other data or weights, and fails.
        folder: of the rows, ``<key>.json``, and of work in progress, ``work/<key>/``.
        place: where and on what.
        attempt: any text, which tells this try from others for executors that remember what equal calls gave (Dask).
    """
    folder = Path(folder)
    path, work = folder / f"{key}.json", folder / "work" / key
    with _ALONE, _claim(work, place):
        row, unwritable = read_row(path), False
        if row is None or row["status"] != "done":
            clock = time.perf_counter()
            row = {"key": key, "run": run.facts()}
            try:
                if run.key != key:
                    raise ValueError(f"the data or weights here are not those the run was planned with ({key})")
                row |= _trained(run, work, place) | {"status": "done", "error": ""}
            except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second, and turns off Ctrl-C
                if threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                raise KeyboardInterrupt from None
            except Exception as error:
                row |= {"status": "failed", "error": _short(error)}
                unwritable = isinstance(error, OSError)
            elsewhere = row["status"] == "failed" and (read_row(path) or row)["status"] == "done"
            if not elsewhere:  # another process that was given the same run has finished it
                write_row(path, row | {"wall_s": round(time.perf_counter() - clock, 2)} | _surroundings())
            row = read_row(path) or row
        if not (unwritable and row["status"] == "failed"):  # after a full disk it goes on from its last epoch
            tidy_work(work, place.keep and row["status"] == "done")
    return row


def _claim(work: Path, place: Place):
    """Keep other processes, such as a second grid, from doing this run meanwhile: they would share its checkpoints.

    The claim ends with the process, however that ends. Processes of several devices do share a run.
    """
    while place.devices == 1:
        work.mkdir(parents=True, exist_ok=True)
        try:
            file = (work / "claim").open("w")
        except FileNotFoundError:  # who had the run before removes the folder just now
            continue
        try:
            fcntl.lockf(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            return file
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()
    return nullcontext()


def _trained(run: Run, work: Path, place: Place) -> dict:
    if place.threads is not None:
        torch.set_num_threads(place.threads)
    if run.batch_size % place.devices:
        raise ValueError(f"a batch of {run.batch_size} images cannot be shared by {place.devices} devices")
    train, val, test = run.parts()
    unseen = run.unseen_part()

    def images() -> EarthData:
        return EarthData(train, val, test, run.batch_size // place.devices, place.workers, run.seed, unseen=unseen)

    data = images()
    task = untrained(run, data)
    watch, headline = Stopwatch(), HEADLINES.get(run.dataset, task.monitor)
    metrics = fit(
        task,
        data,
        work,
        run.epochs,
        run.seed,
        run.patience,
        headline,
        precision=run.precision,
        accumulate=run.accumulate,
        accelerator=place.accelerator,
        devices=place.devices,
        strategy=place.strategy,
        callbacks=[watch],
    )
    if run.stage == "final" and (own := OWN_TESTS.get((run.dataset, train.task))):
        whole = images()  # without a trainer, which would share them out: all of them, here
        metrics["test"] |= own(task, whole.test_dataloader())
        if unseen is not None:
            metrics["unseen"] |= own(task, whole.unseen_split().test_dataloader())
    if run.moved and run.stage == "final":
        metrics["rgb"] = moved(task.model, _backbone(run), train, test)
    counts = count_parameters(task.model)
    parts = {"train": train, "val": val, "test": test, "unseen": unseen}
    return {
        "metrics": metrics,
        "headline": headline,
        "task": train.task,
        "images": {name: len(part) for name, part in parts.items() if part},
        "backbone_hash": task.model.backbone_hash,
        "tuned": counts["tuned"],
        "tuned_percent": counts["percent"],
        "adapter_bytes": adapter_bytes(task.model),
        **watch.measured(),
        "device": watch.device,
    }


def untrained(run: Run, data: EarthData) -> Classification | Segmentation:
    """The task of a run before training: an adapted ViT, its normalisation fitted, and a head; drawn by ``run.start``.

    Args:
        data: the run's images; those that train are what normalisation is fitted on.

    Raises:
        ValueError: metadata that the images do not come with.
    """
    train, vit = data.train, _backbone(run)
    lightning.seed_everything(run.start, verbose=False)
    nodata = "zero" if train.nodata == "nan" else "error"
    if run.metadata and not (known := set(train[0]["meta"])) & set(run.metadata):
        raise ValueError(f"metadata={run.metadata}, and images of {run.dataset} come with {sorted(known)}")
    model = adapt(vit, run.method, train.bands, train.sensor, run.image_size, nodata=nodata, metadata=run.metadata)
    model.fit_normalization(data.train_dataloader())
    return _task_of(run, model, train)


def _task_of(run: Run, model: AdaptedViT, data) -> Classification | Segmentation:
    """By the data's kind, with the run's recipe."""
    recipe = {name: getattr(run, name) for name in ("lr", "head_lr", "weight_decay", "schedule", "warmup", "augment")}
    if data.task == "segmentation":
        ignore = data.ignore_index
        return Segmentation(model, data.classes, decoder=run.decoder, ignore_index=ignore, **recipe)
    return Classification(model, data.classes, multilabel=data.task == "multilabel", **recipe)


def _backbone(run: Run):
    """The backbone of a run. What tells weights of one name apart: the seed of random ones, the time of a file."""
    origin = run.start if run.weights == "random" else None
    if run.weights not in NAMED_WEIGHTS:
        origin = Path(run.weights).stat().st_mtime_ns
    return _loaded(run.backbone, run.weights, run.res, run.image_size, origin)


@lru_cache(maxsize=2)
def _loaded(name: str, weights: str, res: float | None, image_size: int, origin: int | None):
    """A backbone, loaded once a process: ``adapt`` copies it."""
    with torch.random.fork_rng(devices=[]):
        if weights == "random":
            torch.manual_seed(origin)
        return load_backbone(name, weights, image_size, res)


class Stopwatch(lightning.Callback):
    """Time of a training step and memory at its highest."""

    def __init__(self):
        self.device, self.seconds, self._start = "", [], 0.0

    def setup(self, trainer: lightning.Trainer, task: lightning.LightningModule, stage: str) -> None:
        self.device = device_name(trainer.strategy.root_device)

    def on_fit_start(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        _reset_peak(task.device)

    def on_train_batch_start(self, *_) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, task: lightning.LightningModule, *_) -> None:
        if len(self.seconds) < 30:
            if task.device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - self._start)

    def on_train_end(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        self.peak = _peak(task.device)

    def measured(self) -> dict[str, float | None]:
        """``step_ms``, the median of up to 30 steps without the first two; ``peak_mb`` of GPU or process.

        None where nothing was trained in this process: the run had been stopped after its training.
        """
        steps = sorted(self.seconds[2:] or self.seconds)
        peak = getattr(self, "peak", None)
        return {"step_ms": round(1e3 * steps[len(steps) // 2], 3) if steps else None, "peak_mb": peak}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the process's highest memory counts anew from here


def _peak(device: torch.device) -> float:
    """Highest memory in MiB since ``_reset_peak``; of the whole process on a CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return round(int(lines["VmHWM"].split()[0]) / 2**10, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)


@lru_cache(maxsize=1)
def _surroundings() -> dict:
    """Versions and commit that a row was made with."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}
    source = Path(__file__).parent
    try:
        shown = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=source, capture_output=True, text=True, timeout=10
        )
        commit = shown.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    return {"versions": versions, "commit": commit}


def _short(error: Exception) -> str:
    """``ValueError: message (file.py:12)``, in one line."""
    last: Sequence[traceback.FrameSummary] = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" ({Path(last[0].filename).name}:{last[0].lineno})" if last else ""
    return " ".join(f"{type(error).__name__}: {error}{place}".split())[:500]


def tidy_work(work: Path, keep: bool) -> None:
    """Remove the work of a run that ended; of one that failed too, since what it left may be the reason."""
    best = work / BEST
    if keep and best.is_file():
        for path in work.iterdir():
            if path != best:
                path.unlink(missing_ok=True)
    elif work.is_dir():
        best.unlink(missing_ok=True)  # first of all: alone, were this cut short, it would pass for kept
        shutil.rmtree(work, ignore_errors=True)
