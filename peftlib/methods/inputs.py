"""How the bands come in without DEFLECT: not at all, or through kernels of their own in the patch embedding."""

from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peftlib.methods.base import Input, option
from peftlib.sensors.bands import BandSet
from peftlib.sensors.reflectance import Reflectance

STARTS = ("zero", "repeat", "mean", "random", "nearest")


@dataclass(frozen=True)
class RGB(Input):
    """Red, green and blue alone, through the pretrained patch embedding. Other bands are left out."""

    name, label = "rgb", "RGB"
    reads_any_bands = True


@dataclass(frozen=True)
class Inflated(Input):
    """All bands, through a patch embedding with a kernel for each: red, green and blue as pretrained.

    Attributes:
        start: of the new kernels (``repeat`` and ``random``: Scheibenreif et al., CVPR 2024):
            ``zero``     zero, so the model starts as the pretrained one;
            ``repeat``   red, green, blue in turn;
            ``mean``     the mean of the three;
            ``random``   as a fresh layer would draw them;
            ``nearest``  that of the colour nearest in wavelength.
            ``repeat``, ``mean`` and ``nearest`` scale all kernels by 3 / C: the blocks see values of the same size.
        train: whether the patch embedding is trained.
    """

    name, label = "inflated", "inflated"
    learning_rates = (1e-4, 4e-4, 1.6e-3, 6.4e-3)
    tunes = r"vit\.patch_embed\.proj\.(weight|bias)"

    start: str = option("zero", other="mean", choices=STARTS)
    train: bool = option(True, other=False, choices=(True, False))

    def __post_init__(self):
        super().__post_init__()
        if self.start in ("zero", "random") and not self.train:
            raise ValueError(f"{self} would see zero, or noise, of the new bands: train it, or choose of {STARTS}")

    def inject(self, vit: VisionTransformer, bands: BandSet) -> None:
        if not bands.beyond_rgb:
            raise ValueError(f"Inflated reads bands beyond RGB, and bands {bands.names} have none; use pl.RGB()")
        proj = vit.patch_embed.proj
        proj.weight = nn.Parameter(inflated_kernels(proj.weight.detach(), bands, self.start))
        proj.in_channels = proj.weight.shape[1]
        proj.requires_grad_(self.train)

    def patch_pixels(self, reflectance: Reflectance, x: Tensor) -> Tensor:
        return torch.cat([reflectance.rgb(x), reflectance.beyond(x)], dim=1)


def inflated_kernels(rgb: Tensor, bands: BandSet, start: str) -> Tensor:
    """Patch kernels for RGB and the bands beyond: (d, 3, p, p) -> (d, C, p, p). ``start`` as in ``Inflated``."""
    new_bands = len(bands.beyond_rgb)
    if start == "zero":
        return torch.cat([rgb, rgb.new_zeros(len(rgb), new_bands, *rgb.shape[2:])], dim=1)
    if start == "random":
        fresh = nn.Conv2d(3 + new_bands, len(rgb), (rgb.shape[2], rgb.shape[3]), device=rgb.device, dtype=rgb.dtype)
        return torch.cat([rgb, fresh.weight.detach()[:, 3:]], dim=1)
    if start == "mean":
        extra = rgb.mean(1, keepdim=True).expand(-1, new_bands, -1, -1)
    elif start == "repeat":
        extra = rgb[:, [i % 3 for i in range(new_bands)]]
    else:
        nm = bands.wavelengths
        extra = rgb[:, [min(range(3), key=lambda c: abs(nm[bands.rgb[c]] - nm[i])) for i in bands.beyond_rgb]]
    return torch.cat([rgb, extra], dim=1) * 3 / (3 + new_bands)
