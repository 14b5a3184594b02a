"""The tasks: classification and segmentation with an adapted ViT. ``peftlib.training.fit.fit`` trains them."""

import math
from collections.abc import Iterable, Sequence

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from peftlib.data import ChipCrops
from peftlib.model.adapted_vit import AdaptedViT
from peftlib.training.decoders import decoder as decoder_by_name
from peftlib.training.learning import Task
from peftlib.training.metrics import label_metrics, mask_metrics, multilabel_metrics


class Classification(Task):
    """One label an image, or any number of them: a linear head on the class token and the mean of the patch tokens.

    Logs ``loss``, ``accuracy``, ``balanced_accuracy`` and ``macro_f1``; with ``multilabel``, ``loss``, ``map``,
    ``micro_map``, ``macro_f1`` and ``micro_f1``. See ``peftlib.training.metrics``.

    Args:
        model: the adapted ViT.
        classes: names of the classes, or how many there are.
        multilabel: labels are (classes,) of 0 and 1.
        recipe: learning rates and so on, see ``Task``.
    """

    def __init__(self, model: AdaptedViT, classes: int | Sequence[str], *, multilabel: bool = False, **recipe):
        names = class_names(classes)
        metrics = multilabel_metrics(names) if multilabel else label_metrics(names)
        super().__init__(model, names, metrics, "map" if multilabel else "macro_f1", **recipe)
        self.multilabel = multilabel
        self.has_class_token = model.vit.cls_token is not None
        self.head = nn.Linear(model.vit.embed_dim * (1 + self.has_class_token), len(names))

    def features(self, x: Tensor, described: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W) reflectance -> class token and mean of the patch tokens (B, 2 d), or without the former."""
        tokens = self.model(x, described)
        mean = tokens[:, -math.prod(self.model.grid_size) :].mean(1)
        return torch.cat([tokens[:, 0], mean], dim=1) if self.has_class_token else mean

    def decide(self, features: Tensor) -> Tensor:
        """-> logits (B, classes)."""
        return self.head(features)

    def truth(self, batch: dict) -> Tensor:
        return batch["label"]

    def loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        if self.multilabel:
            return F.binary_cross_entropy_with_logits(logits.float(), truth.float())
        return F.cross_entropy(logits.float(), truth)

    def predicted(self, logits: Tensor) -> Tensor:
        return logits.float().sigmoid() if self.multilabel else super().predicted(logits)

    def facts(self) -> dict:
        return super().facts() | {"multilabel": self.multilabel}


class Segmentation(Task):
    """One class a pixel.

    A batch whose every pixel is ignored has loss 0 and gradient 0.

    Logs ``loss``, ``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``miou`` and ``iou_<class>``. See
    ``peftlib.training.metrics``.

    Args:
        model: the adapted ViT.
        classes: names of the classes, or how many there are.
        decoder: ``"linear"``, ``"unet"`` or ``"upernet"``.
        ignore_index: label of pixels that do not count.
        recipe: learning rates and so on, see ``Task``.
    """

    def __init__(
        self,
        model: AdaptedViT,
        classes: int | Sequence[str],
        *,
        decoder: str = "linear",
        ignore_index: int = -1,
        **recipe,
    ):
        names = class_names(classes)
        if 0 <= ignore_index < len(names):
            raise ValueError(f"ignore_index={ignore_index} is a class; give ignored pixels a number of their own")
        super().__init__(model, names, mask_metrics(names, ignore_index), "miou", **recipe)
        self.decoder = decoder_by_name(decoder, model, len(names))
        self.decoder_name, self.ignore_index = decoder, ignore_index

    def features(self, x: Tensor, described: Tensor | None = None) -> Tensor | list[Tensor]:
        """x: (B, C, H, W) reflectance -> tokens (B, N, d); a list of four for decoders that read four blocks."""
        blocks = self.decoder.blocks
        if blocks is None:
            return self.model(x, described)
        return self.model.intermediate_tokens(x, blocks, described)

    def decide(self, features: Tensor | list[Tensor]) -> Tensor:
        """-> logits (B, classes, H, W)."""
        return self.decoder(features)

    def truth(self, batch: dict) -> Tensor:
        return batch["mask"].long()

    def loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        total = F.cross_entropy(logits.float(), truth, ignore_index=self.ignore_index, reduction="sum")
        return total / self.weight(truth).clamp_min(1)  # 0, not NaN, where no pixel counts

    def weight(self, truth: Tensor) -> Tensor:
        return (truth != self.ignore_index).sum()

    def facts(self) -> dict:
        return super().facts() | {"decoder": self.decoder_name, "ignore_index": self.ignore_index}


@torch.no_grad()
def logits_and_truth(task: Task, batches: Iterable[dict]) -> tuple[Tensor, Tensor]:
    """What a task makes of batches, resized as in training, and what is true; on the CPU.

    Returns:
        (n, classes) and (n,) or, of masks, (n, classes, H, W) and (n, H, W).
    """
    logits, truth = [], []
    for batch in batches:
        batch = task.resized(batch | {"image": batch["image"].to(task.device)})
        logits.append(task.logits(batch).float().cpu())
        truth.append(task.truth(batch).cpu())
    return torch.cat(logits), torch.cat(truth)


def class_names(classes: int | Sequence[str]) -> tuple[str, ...]:
    """Names of classes; those of a bare number are "0", "1", ..."""
    names = tuple(str(i) for i in range(classes)) if isinstance(classes, int) else tuple(classes)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"classes={classes!r}; give two or more different names, or their number")
    return names


def quiet_trainer(**options) -> lightning.Trainer:
    """A Lightning ``Trainer`` for short runs in notebooks: no logger, no checkpoints, no banner."""
    import logging
    import warnings

    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    silent = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return lightning.Trainer(**(silent | options))


def train_on_crops(
    model: AdaptedViT,
    image: Tensor,
    mask: Tensor,
    classes: int,
    steps: int,
    batch_size: int = 8,
    lr: float = 2e-3,
    head_lr: float = 3e-3,
    seed: int = 0,
    callbacks: Sequence[lightning.Callback] = (),
) -> Segmentation:
    """Train an adapter and a linear decoder, on the CPU, on random crops from the left half of one labelled image.

    Args:
        image: (C, H, W) reflectance; mask: (H, W) class numbers.
        steps: optimiser steps of ``batch_size`` crops, each of the model's image size.
        seed: of decoder and crops.
    """
    lightning.seed_everything(seed, verbose=False)
    task = Segmentation(model, classes, lr=lr, head_lr=head_lr, schedule="constant", warmup=0.0, augment=False)
    crops = ChipCrops(image, mask, model.image_size[0], "train", steps * batch_size, seed=seed)
    trainer = quiet_trainer(max_epochs=1, callbacks=list(callbacks), accelerator="cpu")
    trainer.fit(task, DataLoader(crops, batch_size))
    return task


def crop_accuracy(task: Segmentation, image: Tensor, mask: Tensor, part: str = "test", crops: int = 32) -> float:
    """Share of pixels that are classified rightly, on fixed crops from one half of a labelled image."""
    data = ChipCrops(image, mask, task.model.image_size[0], part, crops, seed=2**16)
    trainer = quiet_trainer(accelerator="cpu")
    return trainer.test(task, DataLoader(data, 16), verbose=False)[0]["accuracy"]
