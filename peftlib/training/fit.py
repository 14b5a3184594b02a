"""fit: train a task for so many steps, resume after a kill with the same numbers, and evaluate."""

import json
import logging
import math
import random
import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import fmean

import lightning
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from peftlib.data.datamodule import EarthData
from peftlib.files import atomic_path, readable
from peftlib.training.base import Task

LAST, RESULTS, HISTORY = "last.ckpt", "results.json", "metrics.csv"
JUMP = 10


def fit(
    task: Task, data: EarthData, folder: str | Path, steps: int = 500, seed: int = 0, precision: str = "32-true",
    accumulate: int = 1, accelerator: str = "auto", progress: bool = False, save_every: int = 100,
    callbacks: Sequence[lightning.Callback] = (), log: bool = True, **options,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Train and evaluate. The task comes back in eval mode with its last weights.

    Called again with the same folder it resumes after the last checkpoint, and gives what it would have given without
    the interruption. Where the run was finished it reads the results and the weights, and says so.

    Args:
        task, data: ``Classification`` or ``Segmentation``, and its images.
        folder: for checkpoints (what is tuned, and the optimiser) and ``results.json``; one a run.
        steps: of the optimiser; the schedule of learning rates covers them.
        seed: of dropout and augmentation. The head's start is drawn when the task is made, the order of images by
            ``EarthData``.
        precision: ``"32-true"``, ``"bf16-mixed"``, or another of Lightning's.
        accumulate: batches whose gradients make one step; progress: whether to show bars.
        accelerator, callbacks, options: as for Lightning's ``Trainer``, such as ``devices=4, strategy="ddp",
            gradient_clip_val=1.0``; ``check_val_every_n_epoch=5`` validates less often, ``10**9`` at the end alone.
        save_every: write a checkpoint after so many steps, at the next end of an epoch.
        log: validate after each epoch, print a line, write ``metrics.csv``, and warn where the loss jumps or a class is
            never predicted, or has no label (see ``History``). False does none of it, and gives the same results.

    Returns:
        ``{"val": {"loss": ..., ...}, "test": {...}, "unseen": {...}}``, without those that the data have not.

    Raises:
        ValueError: a folder with a run of other settings, data or statistics; a damaged checkpoint; a monitor that is
            NaN, as where validation holds nothing to score.
    """
    whole = {"steps": steps, "accumulate": accumulate, "save_every": save_every}
    if wrong := {name: number for name, number in whole.items() if number < 1}:
        raise ValueError(f"fit({', '.join(f'{k}={v}' for k, v in wrong.items())}); it must be at least 1")
    folder, monitor = Path(folder).absolute(), task.monitor
    last = folder / LAST
    facts = task.facts() | data.facts() | {name: v for name, v in options.items() if isinstance(v, int | float | str)}
    facts |= {"steps": steps, "seed": seed, "precision": precision, "accumulate": accumulate}
    if (folder / RESULTS).is_file():
        results = json.loads((folder / RESULTS).read_text())
        refuse_other_run(results["facts"], facts, folder)
        restore(task, last)
        print(f"finished before: read from {folder / RESULTS}")
        return results["metrics"]
    resumed = read_checkpoint(last) if last.is_file() else None
    if resumed is not None:
        refuse_other_run(json.loads(resumed["callbacks"][Reseed.__name__]["facts"]), facts, folder)

    epoch_steps = math.ceil(len(data.train) / data.batch_size / accumulate)
    keep = ModelCheckpoint(
        folder, last.stem, every_n_epochs=math.ceil(save_every / epoch_steps), save_on_train_epoch_end=True,
        auto_insert_metric_name=False, enable_version_counter=False,
    )  # fmt: skip
    history = [History(folder, steps)] if log else []
    trainer = quiet_trainer(
        max_epochs=steps,  # Reseed ends it before
        precision=precision,
        accumulate_grad_batches=accumulate,
        accelerator=accelerator,
        use_distributed_sampler=False,  # EarthData shares images out itself
        num_sanity_val_steps=0,
        enable_progress_bar=progress,
        enable_checkpointing=True,
        callbacks=[*callbacks, *history, Reseed(facts), keep],
        plugins=[AtomicCheckpoints()],
        **({"devices": 1, "check_val_every_n_epoch": 1 if log else steps + 1} | options),
    )
    if resumed is None or resumed["global_step"] < steps:
        task.steps = steps
        trainer.fit(task, datamodule=data, ckpt_path=None if resumed is None else last, weights_only=True)
        trainer.save_checkpoint(last)
    restore(task, last)
    metrics = {"val": dict(trainer.validate(task, datamodule=data, verbose=False)[0])}
    if not math.isfinite(metrics["val"][monitor]):
        why = "did the training diverge (rates, precision), or is every validation pixel ignored?"
        raise ValueError(f"{monitor} is not a number in validation; {why}")
    if log and (names := getattr(task.metrics, "never_predicted", ())):
        advice = "class_weights='balanced' or dice=0.5 help where it is rare, other rates where nothing is learned"
        warnings.warn(f"never predicted, though in validation: {', '.join(names)}; {advice}", stacklevel=2)
    if data.test is not None:
        metrics["test"] = dict(trainer.test(task, datamodule=data, verbose=False)[0])
    if data.unseen is not None:
        metrics["unseen"] = dict(trainer.test(task, datamodule=data.unseen_split(), verbose=False)[0])
    if trainer.is_global_zero:
        with atomic_path(folder / RESULTS) as temporary:
            temporary.write_text(json.dumps({"metrics": metrics, "facts": facts}, indent=1))
    trainer.strategy.barrier()  # no process may remove the folder before this
    return metrics


class Reseed(lightning.Callback):
    """Start each epoch from random numbers that depend on seed, epoch and process alone: a resumed run draws the same.

    It ends the training too. (Lightning's ``max_steps`` resumes at another batch than ``max_epochs`` does.)
    ``facts``, what the run depends on, are kept in its checkpoints.
    """

    def __init__(self, facts: Mapping):
        self.facts = facts

    def on_train_epoch_start(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        draw = np.random.SeedSequence([self.facts["seed"], trainer.current_epoch, trainer.global_rank])
        number = int(draw.generate_state(1)[0])
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002 (for data sets that draw from it)
        torch.manual_seed(number)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.facts["steps"]

    def state_dict(self) -> dict:
        return {"facts": json.dumps(self.facts)}


class History(lightning.Callback):
    """A line an epoch, and ``metrics.csv``, which a resumed run continues. Warns where the loss of a step jumps.

    A jump is no number, or ``JUMP`` times the lowest before and above the first: near zero losses vary that much.
    """

    def __init__(self, folder: Path, steps: int):
        self.path, self.steps = folder / HISTORY, steps
        self.rows: list[dict[str, float]] = []
        self.losses: list[torch.Tensor] = []
        self.scores: dict[str, float] = {}
        self.first, self.lowest = 0.0, math.inf

    def on_train_epoch_start(self, trainer: lightning.Trainer, task) -> None:
        self.seen = torch.zeros(len(task.classes) + 1, device=task.device)  # the last is of what is no class
        self.clock, self.begun, self.losses, self.scores = time.perf_counter(), trainer.global_step, [], {}

    def on_train_batch_end(self, trainer: lightning.Trainer, task, outputs, batch, *_) -> None:
        self.seen[task.target(batch).clamp(-1, len(task.classes))] = 1
        self.losses.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)  # to read it here would wait

    def on_validation_end(self, trainer: lightning.Trainer, *_) -> None:
        self.scores = {f"val_{name}": float(value) for name, value in trainer.callback_metrics.items()}

    def on_train_epoch_end(self, trainer: lightning.Trainer, task) -> None:
        losses = trainer.strategy.reduce(torch.stack(self.losses), reduce_op="mean").tolist()
        seen = trainer.strategy.reduce(self.seen, reduce_op="sum").tolist()
        seconds, step = time.perf_counter() - self.clock, trainer.global_step
        row = {"epoch": trainer.current_epoch + 1, "step": step, "train_loss": fmean(losses)} | self.scores
        self.rows.append(row | {"seconds": round(seconds, 3)})
        if not trainer.is_global_zero:
            return
        with atomic_path(self.path) as temporary:
            pd.DataFrame(self.rows).to_csv(temporary, index=False)
        left = timedelta(seconds=round(seconds / (step - self.begun) * (self.steps - step)))
        shown = [f"{name} {row[name]:.4g}" for name in ("train_loss", "val_loss", f"val_{task.monitor}") if name in row]
        print(
            f"epoch {row['epoch']}, step {step} of {self.steps}:", *shown, f"{seconds:.1f} s, {left} left", flush=True
        )
        if (lost := [name for name, n in zip(task.classes, seen, strict=False) if not n]) and row["epoch"] == 1:
            warnings.warn(f"no training label in the first {step} steps: {', '.join(lost)}", stacklevel=1)
        if any([self.jumps(loss) for loss in losses]):  # a list: each is looked at
            told = f"the loss jumps (epoch {row['epoch']}); try lower rates (search_lr) or gradient_clip_val=1.0"
            warnings.warn(told, stacklevel=1)  # at 2 it would be Lightning's, and those are off

    def jumps(self, loss: float) -> bool:
        """Whether the loss of the next step jumps; 0 is a batch without anything to learn from."""
        if loss:
            self.first, self.lowest = self.first or loss, min(self.lowest, loss)
        return not loss <= max(JUMP * self.lowest, self.first)

    def state_dict(self) -> dict:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict) -> None:
        self.rows = list(state["rows"])


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear by rename. (Lightning's come from /tmp: to another disk, a move is a copy.)"""

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options=None) -> None:
        with atomic_path(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


def read_checkpoint(path: str | Path) -> dict:
    """A checkpoint of ``fit``, on the CPU, read without unpickling code; errors as of ``files.readable``."""
    with readable(path, "checkpoint", " Delete it to start anew"):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(checkpoint, dict) or Reseed.__name__ not in checkpoint.get("callbacks", {}):
        raise ValueError(f"{path} is no checkpoint of peftlib.training.fit.fit")
    return checkpoint


def restore(task: Task, path: str | Path) -> Task:
    """Give a task the weights of a checkpoint of ``fit``, and put it into eval mode; errors as ``read_checkpoint``."""
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


def quiet_trainer(**options) -> lightning.Trainer:
    """A Lightning ``Trainer`` for short runs in notebooks: no logger, no checkpoints, no banner."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return lightning.Trainer(**(quiet | options))
