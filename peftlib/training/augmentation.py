"""What is done to a whole batch on its device: the eight symmetries of the square, and resizing."""

import torch
import torch.nn.functional as F
from torch import Tensor


def d4(x: Tensor, choice: Tensor) -> Tensor:
    """Apply to each image its own symmetry of the square (the dihedral group D4).

    x: (B, ..., H, W), choice: (B,) numbers 0 to 7, whose bits say: columns reversed, rows reversed, transposed last
    -> same shape. An image that is not square has only the choices 0 to 3.
    """
    choice = choice.to(x.device).view(-1, *[1] * (x.ndim - 1))
    x = torch.where((choice & 1).bool(), x.flip(-1), x)
    x = torch.where((choice & 2).bool(), x.flip(-2), x)
    return torch.where((choice & 4).bool(), x.transpose(-2, -1), x) if x.shape[-2] == x.shape[-1] else x


def random_d4(image: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """A random symmetry for each image, the same for its mask. image: (B, C, H, W), mask: (B, H, W) or None."""
    square = image.shape[-2] == image.shape[-1]
    choice = torch.randint(8 if square else 4, (len(image),))
    return d4(image, choice), None if mask is None else d4(mask, choice)


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H', W') -> (B, C, H, W), bilinear, smoothed where it shrinks. NaN spreads to the pixels made of it."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H', W') -> (B, H, W): of each new pixel the class at its centre."""
    if tuple(mask.shape[-2:]) == tuple(size):
        return mask
    rows, columns = (
        ((torch.arange(new, device=mask.device) + 0.5) * old / new).long()
        for old, new in zip(mask.shape[-2:], size, strict=True)
    )
    return mask[:, rows[:, None], columns]
