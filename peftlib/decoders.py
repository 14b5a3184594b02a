"""Heads that turn tokens into predictions."""

import torch.nn.functional as F
from torch import Tensor, nn


class LinearDecoder(nn.Module):
    """One linear layer on every patch token, its logits enlarged bilinearly to pixels.

    Args:
        dim: width of the tokens.
        classes: number of classes.
        grid_size: patches (down, across).
        image_size: (H, W) in pixels.
    """

    def __init__(self, dim: int, classes: int, grid_size: tuple[int, int], image_size: tuple[int, int]):
        super().__init__()
        self.grid_size, self.image_size = tuple(grid_size), tuple(image_size)
        self.linear = nn.Linear(dim, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (B, N, d), prefix tokens first -> logits (B, classes, H, W)."""
        n = self.grid_size[0] * self.grid_size[1]
        logits = self.linear(tokens[:, -n:]).transpose(1, 2).unflatten(2, self.grid_size)
        return F.interpolate(logits, self.image_size, mode="bilinear", align_corners=False)
