"""Short trainings on crops of one labelled chip, for the notebooks that look inside a model.

A plain loop, to be read from top to bottom; experiments train with ``peftlib.training.fit``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from peftlib.data.example_chip import ChipCrops
from peftlib.model.adapted_vit import AdaptedViT
from peftlib.training.decoders import LinearDecoder


def train_on_crops(
    model: AdaptedViT, image: Tensor, mask: Tensor, classes: int, steps: int,
    batch_size: int = 8, lr: float = 2e-3, head_lr: float = 3e-3, seed: int = 0,
) -> tuple[LinearDecoder, list[float]]:  # fmt: skip
    """Train, in place, what a model tunes, and a linear decoder, on random crops from the left half of one image.

    Args:
        image: (C, H, W) reflectance; mask: (H, W) class numbers.
        steps: optimiser steps of ``batch_size`` crops, each of the model's image size; seed: of decoder and crops.
        lr: constant learning rate of input and method; head_lr: of the decoder.

    Returns the decoder, and the cross-entropy of each step.
    """
    torch.manual_seed(seed)
    decoder = LinearDecoder(model.vit.embed_dim, classes, model.grid_size, model.image_size)
    tuned = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW([{"params": tuned, "lr": lr}, {"params": decoder.parameters(), "lr": head_lr}])
    crops = ChipCrops(image, mask, model.image_size[0], "train", steps * batch_size, seed)
    losses = []
    model.train()
    for batch in DataLoader(crops, batch_size):
        loss = F.cross_entropy(decoder(model(batch["image"])), batch["mask"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    model.eval()
    return decoder, losses
