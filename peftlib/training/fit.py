"""fit: train a task to the end, through kills and early stopping, and say how good it is."""

import json
import os
import pickle
import random
import shutil
import signal
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy

from peftlib.data.datamodule import EarthData
from peftlib.files import atomic_path, check_zip
from peftlib.training.cached_features import FeatureData, can_keep
from peftlib.training.learning import Task
from peftlib.training.tasks import quiet_trainer

LAST, BEST, RESULTS = "last.ckpt", "best.ckpt", "results.json"


@contextmanager
def ended_by_sigterm():
    """Let SIGTERM end the process at once. Lightning alone would note it for the next batch, and forget it at the last.

    A handler of the caller's own stays. Lightning calls what it finds after its own, which tells other ranks.
    """

    def end(number, _frame) -> None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    main = threading.current_thread() is threading.main_thread()
    ours = main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@ended_by_sigterm()
def fit(
    task: Task,
    data: EarthData | lightning.LightningDataModule,
    folder: str | Path,
    epochs: int = 100,
    seed: int = 0,
    patience: int | None = 15,
    monitor: str | None = None,
    precision: str = "32-true",
    accumulate: int = 1,
    accelerator: str = "auto",
    devices: int | Sequence[int] | str = 1,
    strategy: str | Strategy = "auto",
    progress: bool = False,
    callbacks: Sequence[lightning.Callback] = (),
    **options,
) -> dict[str, dict[str, float]]:
    """Train, keep the best epoch, and evaluate it. The task comes back with its best weights, in eval mode.

    Where nothing of the backbone is tuned and images are not turned (``augment=False``), it reads each image once.

    Called again with the same folder it goes on after the last epoch that was finished, and gives what it would have
    given without the interruption; where the run was finished it reads the results and the best weights.

    Args:
        task: ``Classification`` or ``Segmentation``.
        data: its images.
        folder: for ``best.ckpt`` and ``last.ckpt`` (what is tuned, and the optimiser) and ``results.json``; a run each.
        epochs: at most.
        seed: of dropout and augmentation. The head's start is drawn when the task is made, the order of images by
            ``EarthData``.
        patience: epochs without a better ``monitor`` after which training ends; None goes through all epochs.
        monitor: metric of validation that tells which epoch is best; None is the task's own. ``"loss"`` is best low.
        precision: ``"32-true"``, ``"bf16-mixed"``, or another of Lightning's but ``"16-true"``: in float16 AdamW's own
            numbers underflow.
        accumulate: batches whose gradients make one step.
        accelerator, devices, strategy: as for Lightning's ``Trainer``, such as ``devices=4, strategy="ddp"``.
        progress: show progress bars.
        callbacks, options: further ones for the ``Trainer``, such as ``gradient_clip_val=1.0``.

    Returns:
        ``{"val": {"loss": ..., ...}, "test": {...}, "unseen": {...}}`` of the best epoch, without those that the data
        have not.

    Raises:
        ValueError: a folder with a run of other settings, damaged checkpoints, a metric that is not there, or one that
            is NaN in every epoch, as where validation holds nothing to score.
    """
    if epochs < 1 or accumulate < 1 or (patience is not None and patience < 1):
        raise ValueError(f"fit({epochs=}, {accumulate=}, {patience=}); each must be at least 1, patience may be None")
    if precision == "16-true":
        raise ValueError(f"{precision=}: AdamW's numbers underflow in float16; choose '32-true' or 'bf16-mixed'")
    folder, monitor = Path(folder).absolute(), monitor or task.monitor
    facts = task.facts() | (data.facts() if isinstance(data, EarthData) else {})
    facts |= {"epochs": epochs, "seed": seed, "patience": patience, "monitor": monitor, "precision": precision}
    facts |= {"accumulate": accumulate} | {name: v for name, v in options.items() if isinstance(v, int | float | str)}
    if (folder / RESULTS).is_file():
        results = json.loads((folder / RESULTS).read_text())
        refuse_other_run(results["facts"], facts, folder)
        restore(task, folder / BEST)
        print(f"finished before: read from {folder / RESULTS}")
        return results["metrics"]

    if devices == 1 and isinstance(data, EarthData) and can_keep(task, data):
        data = FeatureData(data)
    keeper = Keeper(folder, facts)
    goes_on_from = keeper.find()
    trainer = quiet_trainer(
        max_epochs=epochs,
        precision=precision,
        accumulate_grad_batches=accumulate,
        accelerator=accelerator,
        devices=devices,
        strategy=strategy,
        use_distributed_sampler=not isinstance(data, EarthData),  # which shares images out itself
        num_sanity_val_steps=0,
        enable_progress_bar=progress,
        callbacks=[*callbacks, keeper],
        plugins=[SafeFiles()],
        **options,
    )
    if not keeper.finished:
        task.train()  # for dropout: a pretrained backbone comes in eval mode, and Lightning leaves it there
        trainer.fit(task, datamodule=data, ckpt_path=goes_on_from)
        keeper.read(folder / LAST)  # where the strategy trained in processes of its own, this one saw nothing
    if keeper.best_epoch < 0:
        raise ValueError(
            f"{monitor} was not a number in any epoch; did the training diverge (lr, precision), or is there nothing "
            "to score in validation (every pixel ignored, no positive label)?"
        )
    restore(task, folder / BEST)
    metrics = {"val": dict(trainer.validate(task, datamodule=data, verbose=False)[0])}
    if getattr(data, "test", data) is not None:
        metrics["test"] = dict(trainer.test(task, datamodule=data, verbose=False)[0])
    if isinstance(data, EarthData) and data.unseen is not None:
        metrics["unseen"] = dict(trainer.test(task, datamodule=data.unseen_split(), verbose=False)[0])
    if trainer.is_global_zero:
        results = {"metrics": metrics, "epochs": keeper.epoch + 1, "best_epoch": keeper.best_epoch, "facts": facts}
        with atomic_path(folder / RESULTS) as temporary:
            temporary.write_text(json.dumps(results, indent=1))
    trainer.strategy.barrier()  # the caller of no process may remove the folder before this
    return metrics


class Keeper(lightning.Callback):
    """After each epoch: a checkpoint to go on from, one more if the epoch was the best, the end if patience is over.

    Each epoch starts from random numbers that depend on seed, epoch and process alone, so that a run that goes on draws
    what it would have drawn.

    Args:
        folder: of the checkpoints.
        facts: what the run depends on; kept with them.
    """

    def __init__(self, folder: Path, facts: Mapping):
        self.folder, self.facts, self.monitor = folder, facts, facts["monitor"]
        self.epoch, self.best_epoch, self.best = -1, -1, -float("inf")

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        patience = self.facts["patience"]
        waited = self.epoch - self.best_epoch
        return self.epoch + 1 >= self.facts["epochs"] or (patience is not None and waited >= patience)

    def on_train_epoch_start(self, trainer: lightning.Trainer, task: Task) -> None:
        draw = np.random.SeedSequence([self.facts["seed"], trainer.current_epoch, trainer.global_rank])
        number = int(draw.generate_state(1)[0])
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002 (for data sets that draw from it)
        torch.manual_seed(number)

    def on_train_epoch_end(self, trainer: lightning.Trainer, task: Task) -> None:
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(f"monitor={self.monitor!r}; validation gives {', '.join(trainer.callback_metrics)}")
        score = float(trainer.callback_metrics[self.monitor]) * (-1 if self.monitor == "loss" else 1)
        self.epoch = trainer.current_epoch
        if score > self.best:
            self.best, self.best_epoch = score, self.epoch
            trainer.save_checkpoint(self.folder / BEST)
            if trainer.is_global_zero:  # the best before the last: a kill in between repeats the epoch
                with atomic_path(self.folder / LAST) as temporary:
                    shutil.copyfile(self.folder / BEST, temporary)
            trainer.strategy.barrier()  # other processes read it next
        else:
            trainer.save_checkpoint(self.folder / LAST)
        trainer.should_stop = trainer.should_stop or self.finished

    def state_dict(self) -> dict:
        state = {"epoch": self.epoch, "best_epoch": self.best_epoch, "best": self.best}
        return state | {"facts": json.dumps(self.facts)}

    def load_state_dict(self, state: Mapping) -> None:
        self.epoch, self.best_epoch, self.best = (state[key] for key in ("epoch", "best_epoch", "best"))

    def read(self, path: Path) -> dict:
        """Take over the state in a checkpoint; the facts in it."""
        state = read_checkpoint(path)["callbacks"][self.state_key]
        self.load_state_dict(state)
        return json.loads(state["facts"])

    def find(self) -> Path | None:
        """The checkpoint to go on from, None for a new run: the last, or where that is damaged the best."""
        damaged = []
        for path in (self.folder / LAST, self.folder / BEST):
            if not path.is_file():
                continue
            try:
                facts = self.read(path)
            except ValueError as error:
                damaged.append(str(error))
                continue
            refuse_other_run(facts, self.facts, self.folder)
            if damaged:
                warnings.warn(f"{damaged[0]}; going on after epoch {self.epoch} of {path.name}", stacklevel=3)
            elif self.best_epoch >= 0:
                read_checkpoint(self.folder / BEST)  # damaged, it shall be known now, not after the training
            return path
        if damaged:
            raise ValueError(f"nothing to go on from; delete {self.folder} to start anew. {'; '.join(damaged)}")
        return None


class SafeFiles(TorchCheckpointIO):
    """Checkpoints that appear by rename and are read without unpickling code.

    (Lightning's own pass through the system's temporary folder, from where a move to another disk is a copy.)
    """

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options=None) -> None:
        with atomic_path(Path(path)) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # what PyTorch makes of a full disk
                raise OSError(f"could not write {path}; is the disk full? ({error})") from error

    def load_checkpoint(self, path: str | Path, *_, **__) -> dict:
        return _read(path)


def read_checkpoint(path: str | Path) -> dict:
    """A checkpoint of ``fit``, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, damaged, or not such a checkpoint.
    """
    checkpoint = _read(path)
    if not isinstance(checkpoint, dict) or Keeper.__name__ not in checkpoint.get("callbacks", {}):
        raise ValueError(f"{path} is no checkpoint of peftlib.training.fit.fit")
    return checkpoint


def _read(path: str | Path) -> dict:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        check_zip(Path(path))
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is no whole checkpoint; truncated or damaged?") from error


def restore(task: Task, path: str | Path) -> Task:
    """Give a task the weights of a checkpoint of ``fit``, and put it into eval mode.

    Raises:
        FileNotFoundError, ValueError: see ``read_checkpoint``; or a checkpoint of another model.
    """
    checkpoint = read_checkpoint(path)
    task.on_load_checkpoint(checkpoint)
    task.load_state_dict(checkpoint["state_dict"], strict=False)  # names were checked; the rest is the backbone
    return task.eval()


def refuse_other_run(there: Mapping, here: Mapping, folder: Path) -> None:
    """Raise ValueError unless both runs have the same settings."""
    both = {key: f"{there.get(key)!r} there, {here.get(key)!r} here" for key in there.keys() | here.keys()}
    other = [f"{key}: {text}" for key, text in sorted(both.items()) if there.get(key) != here.get(key)]
    if other:
        raise ValueError(f"{folder} holds a run with other settings ({'; '.join(other)}); choose another folder")
