"""What every task shares: batches made ready, optimiser and schedule, evaluation, checkpoints of what is tuned."""

import math
from collections.abc import Sequence

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics import Metric, SumMetric

from peftlib.model.adapted_vit import AdaptedViT
from peftlib.sensors.metadata import encode_metadata
from peftlib.training.augmentation import random_d4, resize_image, resize_mask

SCHEDULES = ("cosine", "constant")
RECIPE = ("input_lr", "lr", "head_lr", "weight_decay", "schedule", "warmup", "augment")  # options of every task


class Task(lightning.LightningModule):
    """What classification and segmentation share.

    Batches are dicts as ``peftlib.data.dataset.collate`` makes them. On its device a batch is augmented (in training)
    and resized to the model's image size: images bilinearly, masks by the nearest pixel. Metrics are those of the
    model's grid, logged with the loss under the same names in validation and test. Only what the method tunes, and the
    head, reaches optimiser and checkpoints.

    Args:
        model: the adapted ViT; classes: their names, or how many there are.
        metrics: of predictions and truth, computes a dict; monitor: the one of them that tells which weights are best.
        input_lr, lr, head_lr: learning rates of what is tuned in the input (patch embedding, EMB), in the blocks by the
            method, and of the head; weight_decay: of AdamW.
        schedule: of the learning rates over all steps, ``"cosine"`` (down to 0) or ``"constant"``; warmup: share of the
            steps in which they first rise linearly.
        augment: apply a random symmetry of the square to each training image, and to its mask.
        class_weights: what the loss of each class is multiplied by: a number a class, or ``"balanced"`` (see
            ``balanced_weights``: before the first step all training labels are read). None weighs all alike.

    Attributes:
        steps: that the schedule covers; None is what Lightning's ``Trainer`` expects.
    """

    truth = "label"  # the entry of a batch that is to be predicted

    def __init__(
        self, model: AdaptedViT, classes: int | Sequence[str], metrics: Metric, monitor: str,
        input_lr: float = 1e-3, lr: float = 1e-3, head_lr: float = 1e-3, weight_decay: float = 0.01,
        schedule: str = "cosine", warmup: float = 0.05, augment: bool = True,
        class_weights: str | Sequence[float] | None = None,
    ):  # fmt: skip
        super().__init__()
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule={schedule!r}; choose from {SCHEDULES}")
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup={warmup!r}; it is a share of all steps, 0 to 1")
        self.model, self.classes, self.monitor = model, class_names(classes), monitor
        self.input_lr, self.lr, self.head_lr, self.weight_decay = input_lr, lr, head_lr, weight_decay
        self.schedule, self.warmup, self.augment = schedule, warmup, augment
        self.metrics, self.total_loss, self.counted = metrics, *(SumMetric(nan_strategy="disable") for _ in range(2))
        given = [1.0] * len(self.classes) if class_weights in ("balanced", None) else class_weights
        if isinstance(given, str) or len(given) != len(self.classes) or not all(w >= 0 for w in given):
            raise ValueError(f"class_weights={given!r}; give 'balanced', None, or a number for each of {self.classes}")
        self.weighting = class_weights if isinstance(class_weights, str | None) else list(class_weights)
        self.register_buffer("class_weights", None if class_weights is None else torch.tensor(given).float())
        self.steps: int | None = None
        self.strict_loading = False  # checkpoints lack the frozen backbone; on_load_checkpoint checks what they hold

    # --- what a task writes ---

    def forward(self, x: Tensor, metadata: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W) reflectance, metadata: (B, K) -> logits (B, classes), or (B, classes, H, W)."""
        raise NotImplementedError

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean over what counts, weighted."""
        raise NotImplementedError

    def target(self, batch: dict) -> Tensor:
        """What is to be predicted: class numbers of pixels or images."""
        return batch[self.truth].long()

    def n_counted(self, target: Tensor) -> Tensor | int:
        """How much of a batch counts: images, or known pixels."""
        return len(target)

    # --- what they share ---

    def on_fit_start(self) -> None:
        self.train()  # for dropout: a pretrained backbone comes in eval mode, and Lightning leaves it there

    def on_train_start(self) -> None:
        if self.weighting == "balanced":
            loader: DataLoader = self.trainer.train_dataloader  # type: ignore[assignment]  # it is there in training
            self.class_weights.copy_(balanced_weights(loader.dataset, self.truth, len(self.classes)))

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        if self.augment and self.trainer.training:
            image, mask = random_d4(batch["image"], batch.get("mask"))
            batch = batch | {"image": image} | ({} if mask is None else {"mask": mask})
        return self.resized(batch)

    def resized(self, batch: dict) -> dict:
        """Images and masks of a batch at the model's size, and the metadata that the model reads as numbers."""
        changed = {"image": resize_image(batch["image"], self.model.image_size)}
        if self.model.metadata is not None:
            changed["metadata"] = encode_metadata(batch["meta"], self.model.metadata.names).to(batch["image"].device)
        if "mask" in batch:
            changed["mask"] = resize_mask(batch["mask"], self.model.image_size)
        return batch | changed

    def logits(self, batch: dict) -> Tensor:
        return self(batch["image"], batch.get("metadata"))

    def training_step(self, batch: dict, _index: int) -> Tensor:
        return self.loss(self.logits(batch), self.target(batch))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        unread = [name for name, p in self.model.named_parameters() if p.requires_grad and p.grad is None]
        if unread and self.global_step == 0:
            named = f"{', '.join(unread[:5])} ({len(unread)} in all)"
            raise ValueError(f"{self.model.method} tunes without effect: the first step gave no gradient to {named}")

    def on_validation_epoch_start(self) -> None:  # processes that were spawned share their parent's counts until now
        for metric in (self.metrics, self.total_loss, self.counted):
            metric.reset()

    def validation_step(self, batch: dict, _index: int) -> None:
        target, logits = self.target(batch), self.logits(batch)
        counted = self.n_counted(target)
        self.total_loss.update(self.loss(logits, target) * counted)
        self.counted.update(counted)
        self.metrics.update(logits.argmax(1), target)

    def on_validation_epoch_end(self) -> None:
        found = {"loss": self.total_loss.compute() / self.counted.compute()} | self.metrics.compute()
        for name, value in found.items():
            self.log(name, value, prog_bar=name == self.monitor)
        self.on_validation_epoch_start()

    on_test_epoch_start, test_step = on_validation_epoch_start, validation_step
    on_test_epoch_end = on_validation_epoch_end

    def configure_optimizers(self) -> OptimizerLRScheduler:
        tuned = self.model.tuned_parts()
        head = [p for name, p in self.named_parameters() if not name.startswith("model.")]
        groups = [
            {"params": list(tuned["input"].values()), "lr": self.input_lr},
            {"params": list(tuned["method"].values()), "lr": self.lr},
            {"params": head, "lr": self.head_lr},
        ]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=self.weight_decay)
        if self._trainer is None:
            return optimizer
        steps = int(self.steps or self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_share(step, steps, self.warmup, self.schedule)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # --- checkpoints ---

    def facts(self) -> dict:
        """What a run of this task depends on, in plain values."""
        model = self.model
        return {
            "task": type(self).__name__,
            "input": str(model.input),
            "method": str(model.method),
            "backbone": model.backbone_hash,
            "bands": list(model.bands.names),
            "sensor": model.bands.sensor,
            "image_size": list(model.image_size),
            "metadata": [] if model.metadata is None else list(model.metadata.names),
            "rgb_white": model.reflectance.rgb_white,
            "frozen": model.precision,
            "nodata": model.reflectance.nodata,
            "statistics": {
                name: [float(f"{value:.5g}") for value in buffer.flatten().tolist()]
                for name, buffer in model.reflectance.state_dict().items()
            },
            "classes": list(self.classes),
            "class_weights": self.weighting,
            **{name: getattr(self, name) for name in RECIPE},
        }

    def tuned_state(self) -> dict[str, Tensor]:
        """What training changes: the adapter, with its normalisation, and the head."""
        head = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("model.")}
        return {f"model.{name}": tensor for name, tensor in self.model.adapter_state().items()} | head

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint |= {"state_dict": self.tuned_state(), "reading": self.model.reading}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        here = {name: tuple(tensor.shape) for name, tensor in self.tuned_state().items()}
        there = {name: tuple(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
        wrong = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        if wrong:
            raise ValueError(f"the checkpoint is of another model: {wrong[:5]} ({len(wrong)} in all) do not fit")
        self.model.reading = checkpoint.get("reading", {})


def rate_share(step: int, steps: int, warmup: float, schedule: str) -> float:
    """Share of the full learning rate at a step, from 0: linear warm-up, then a half cosine down to 0, or constant."""
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / (steps - rising))))


def balanced_weights(data: Dataset, truth: str, classes: int) -> Tensor:
    """w_c = N / (K n_c) for n_c of N labels, K classes that occur: each has the same part in the loss. Else 1.

    ``truth`` is the entry of a sample to count, ``"label"`` or ``"mask"``; numbers that are no class do not count.
    """
    counts = torch.zeros(classes, dtype=torch.long)
    for i in range(len(data)):
        labels = torch.as_tensor(data[i][truth]).flatten()
        counts += torch.bincount(labels[(labels >= 0) & (labels < classes)].long(), minlength=classes)
    return torch.where(counts > 0, counts.sum() / (counts.count_nonzero() * counts), 1.0)


def class_names(classes: int | Sequence[str]) -> tuple[str, ...]:
    """Names of classes; those of a bare number are "0", "1", ..."""
    names = tuple(str(i) for i in range(classes)) if isinstance(classes, int) else tuple(classes)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"classes={classes!r}; give two or more different names, or their number")
    return names
