"""Training on crops of one labelled image: what notebooks 01 to 03 do within seconds."""

from collections.abc import Sequence

import lightning
from torch import Tensor
from torch.utils.data import DataLoader

from peftlib.data import ChipCrops
from peftlib.model.adapted_vit import AdaptedViT
from peftlib.training.fit import quiet_trainer
from peftlib.training.tasks import Segmentation


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
        lr: of input and method; head_lr: of the decoder.
        seed: of decoder and crops.
    """
    lightning.seed_everything(seed, verbose=False)
    rates = {"input_lr": lr, "lr": lr, "head_lr": head_lr}
    task = Segmentation(model, classes, schedule="constant", warmup=0.0, augment=False, **rates)
    crops = ChipCrops(image, mask, model.image_size[0], "train", steps * batch_size, seed=seed)
    trainer = quiet_trainer(max_epochs=1, callbacks=list(callbacks), accelerator="cpu")
    trainer.fit(task, DataLoader(crops, batch_size))
    return task


def crop_accuracy(task: Segmentation, image: Tensor, mask: Tensor, part: str = "test", crops: int = 32) -> float:
    """Share of pixels that are classified rightly, on fixed crops from one half of a labelled image."""
    data = ChipCrops(image, mask, task.model.image_size[0], part, crops, seed=2**16)
    trainer = quiet_trainer(accelerator="cpu")
    return trainer.test(task, DataLoader(data, 16), verbose=False)[0]["accuracy"]
