"""Lightning modules: what is trained on top of an adapted ViT, and how."""

from collections.abc import Sequence

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from peftlib.adapt import AdaptedViT
from peftlib.datasets import ChipCrops
from peftlib.decoders import LinearDecoder


class Segmentation(lightning.LightningModule):
    """Per-pixel classification with a linear decoder.

    Only what the method tunes, and the decoder, reaches the optimiser.

    Args:
        model: the adapted ViT.
        classes: number of classes.
        lr: learning rate of the adapter; head_lr: of the decoder.
        ignore_index: label of pixels that do not count.
    """

    def __init__(
        self, model: AdaptedViT, classes: int, lr: float = 1e-3, head_lr: float = 1e-3, ignore_index: int = -1
    ):
        super().__init__()
        self.model = model
        self.decoder = LinearDecoder(model.vit.embed_dim, classes, model.grid_size, model.image_size)
        self.lr, self.head_lr, self.ignore_index = lr, head_lr, ignore_index
        self.accuracy = MulticlassAccuracy(classes, average="micro", ignore_index=ignore_index)
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) reflectance -> logits (B, classes, H, W)."""
        return self.decoder(self.model(x))

    def training_step(self, batch: dict, _index: int) -> Tensor:
        loss = F.cross_entropy(self(batch["image"]), batch["mask"], ignore_index=self.ignore_index)
        self.losses.append(float(loss.detach()))
        return loss

    def test_step(self, batch: dict, _index: int) -> None:
        self.accuracy(self(batch["image"]).argmax(1), batch["mask"])
        self.log("accuracy", self.accuracy, on_epoch=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        tuned = [p for p in self.model.parameters() if p.requires_grad]
        groups = [{"params": tuned, "lr": self.lr}, {"params": self.decoder.parameters(), "lr": self.head_lr}]
        return torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0.01)


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
    task = Segmentation(model, classes, lr=lr, head_lr=head_lr)
    crops = ChipCrops(image, mask, model.image_size[0], "train", steps * batch_size, seed=seed)
    trainer = quiet_trainer(max_epochs=1, callbacks=list(callbacks), accelerator="cpu")
    trainer.fit(task, DataLoader(crops, batch_size))
    return task


def crop_accuracy(task: Segmentation, image: Tensor, mask: Tensor, part: str = "test", crops: int = 32) -> float:
    """Share of pixels that are classified rightly, on fixed crops from one half of a labelled image."""
    data = ChipCrops(image, mask, task.model.image_size[0], part, crops, seed=2**16)
    trainer = quiet_trainer(accelerator="cpu")
    return trainer.test(task, DataLoader(data, 16), verbose=False)[0]["accuracy"]
