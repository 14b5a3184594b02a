"""What a finished run is scored by beside its metrics: single test images, the data set's own scores, drift on RGB."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from peftlib.data import collate
from peftlib.data.subsets import every_nth
from peftlib.files import atomic_path
from peftlib.methods import Frozen
from peftlib.model.adapted_vit import AdaptedViT, adapt
from peftlib.training.augmentation import resize_image
from peftlib.training.base import Task
from peftlib.training.tasks import Segmentation, predict_batches

IMAGES, BATCH = 192, 32  # at most so many show drift


def evaluate(task: Task, loader: DataLoader, precision: str, file: Path | None = None) -> dict[str, float]:
    """Scores that the data set has of its own, and what is kept of single images.

    Args:
        task: trained, in eval mode.
        loader: of the images, in order.
        file: ``.npz`` to write: ``source``, the names of the images, and of classification ``logits`` (n, classes) and
            ``truth``; of segmentation ``confusion`` (n, classes, classes), true classes down.
    """
    own = loader.dataset.evaluations()
    logits, truth, confusion, classes = [], [], [], len(task.classes)
    for said, known in predict_batches(task, loader, precision):
        if isinstance(task, Segmentation):
            counted = known != task.ignore_index
            pairs = (known * classes + said.argmax(1)).masked_fill(~counted, classes**2).flatten(1)
            counts = F.one_hot(pairs, classes**2 + 1).sum(1)[:, :-1]
            confusion.append(counts.unflatten(1, (classes, classes)).int())
        if own or not isinstance(task, Segmentation):
            logits.append(said)
            truth.append(known)
    if file is not None:
        source = [sample["meta"]["source"] for sample in map(loader.dataset.__getitem__, range(len(loader.dataset)))]
        kept = {"confusion": confusion} if confusion else {"logits": logits, "truth": truth}
        arrays: dict[str, Any] = {name: torch.cat(parts).numpy() for name, parts in kept.items()}
        with atomic_path(file) as temporary:
            np.savez_compressed(temporary, source=source, **arrays)
    found = [score(torch.cat(logits), torch.cat(truth)) for score in own.values()]
    return {name: value for scores in found for name, value in scores.items()}


def rgb_drift(model: AdaptedViT, vit: VisionTransformer, test: Dataset) -> dict[str, float]:
    """How far training moved a model on what it was pretrained for: pictures in red, green and blue.

    The pretrained model sees the red, green and blue of some images; the adapted one sees them with the bands beyond
    RGB held at their mean, where they tell nothing. So only another reading of RGB itself counts.

    Args:
        model: trained, in eval mode, normalisation fitted; vit: the backbone it was made of.
        test: what it is measured on; samples as of ``EarthDataset``.

    Returns:
        ``"block 0"`` and so on: distance of the patch tokens (n, d) that leave the block from the pretrained ones, over
        the deviation of the latter, sqrt(sum |z - z_0|^2 / sum |z_0 - mean z_0|^2). 0: not moved; 1: as far as one
        pretrained token is from the mean one.
    """
    before = adapt(
        vit, Frozen(), model.bands, model.bands.sensor, model.image_size,
        rgb_white=model.reflectance.rgb_white, nodata=model.reflectance.nodata,
    )  # fmt: skip
    before = before.to(model.reflectance.mean.device).eval()
    part = every_nth(test, IMAGES)
    images = resize_image(next(iter(DataLoader(part, len(part), collate_fn=collate)))["image"], model.image_size)
    moved, spread = torch.zeros(2, len(model.vit.blocks))
    for batch in with_mean_bands(images, model).split(BATCH):
        pretrained, adapted = patch_tokens(before, batch), patch_tokens(model, batch)
        moved = moved + (adapted - pretrained).square().sum((1, 2))
        spread = spread + (pretrained - pretrained.mean(1, keepdim=True)).square().sum((1, 2))
    return {f"block {i}": float(value) for i, value in enumerate((moved / spread).sqrt())}


def with_mean_bands(images: Tensor, model: AdaptedViT) -> Tensor:
    """Images whose bands beyond RGB are at the mean that the model knows of them: they tell nothing."""
    images = images.clone()
    beyond = model.reflectance.beyond_channels
    images[:, beyond] = model.reflectance.mean.to(images).expand(len(beyond), 1, 1)
    return images


@torch.no_grad()
def patch_tokens(model: AdaptedViT, images: Tensor) -> Tensor:
    """(B, C, H, W) -> patch tokens that leave each block, (blocks, B n, d), on the CPU."""
    device, patches, tokens = model.reflectance.mean.device, math.prod(model.grid_size), []
    both = model.embed(images.to(device))  # z and z_A
    for block in model.vit.blocks:
        both = model.run_block(block, *both)
        tokens.append(both[0][:, -patches:].flatten(0, 1).cpu())
    return torch.stack(tokens)
