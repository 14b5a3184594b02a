"""Heads that turn tokens into class maps: linear, and UNet and UPerNet on the tokens of four blocks."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from peftlib.files import optional

doubled = partial(nn.ConvTranspose2d, kernel_size=2, stride=2)  # a map of twice the size
DECODERS = ("linear", "unet", "upernet")


class LinearDecoder(nn.Module):
    """One linear layer on every patch token, its logits enlarged bilinearly to pixels.

    Args: width of the tokens, number of classes, patches (down, across), and (H, W) in pixels.
    """

    blocks = None  # reads what leaves the model, not single blocks

    def __init__(self, dim: int, classes: int, grid_size: tuple[int, int], image_size: tuple[int, int]):
        super().__init__()
        self.grid_size, self.image_size = tuple(grid_size), tuple(image_size)
        self.linear = nn.Linear(dim, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (B, N, d), prefix tokens first -> logits (B, classes, H, W)."""
        logits = self.linear(tokens[:, -self.grid_size[0] * self.grid_size[1] :])
        logits = logits.transpose(1, 2).unflatten(2, self.grid_size)
        return F.interpolate(logits, self.image_size, mode="bilinear", align_corners=False)


class Pyramid(nn.Module):
    """Tokens of four blocks, all on one grid -> maps of 4, 2, 1 and 1/2 times that grid, as a CNN's stages have them.

    An odd side is rounded up where it is halved. ``channels`` are those of the four maps, finest first.
    """

    def __init__(self, dim: int, grid_size: tuple[int, int]):
        super().__init__()
        half, quarter = max(dim // 2, 1), max(dim // 4, 1)
        self.grid_size, self.channels = tuple(grid_size), (quarter, half, dim, dim)
        finest = nn.Sequential(doubled(dim, half), group_norm(half), nn.GELU(), doubled(half, quarter))
        self.levels = nn.ModuleList([finest, doubled(dim, half), nn.Identity(), nn.MaxPool2d(2, ceil_mode=True)])

    def forward(self, tokens: list[Tensor]) -> list[Tensor]:
        """Four of (B, N, d), shallow to deep, prefix tokens first -> four maps (B, channels, h, w), fine to coarse."""
        n = self.grid_size[0] * self.grid_size[1]
        maps = [z[:, -n:].transpose(1, 2).unflatten(2, self.grid_size) for z in tokens]
        return [level(m) for level, m in zip(self.levels, maps, strict=True)]


class PyramidDecoder(nn.Module):
    """UNet (Ronneberger et al., 2015) or UPerNet (Xiao et al., 2018) of segmentation-models-pytorch, on a ``Pyramid``.

    Group norm stands in place of batch norm: what an image gets does not depend on its neighbours in the batch.

    Of ``depth`` blocks four evenly spaced ones are read, the last among them; ``dim`` to ``image_size`` are as for
    ``LinearDecoder``. ImportError: segmentation-models-pytorch is not installed.
    """

    def __init__(
        self, name: str, depth: int, dim: int, classes: int, grid_size: tuple[int, int], image_size: tuple[int, int]
    ):  # fmt: skip
        super().__init__()
        self.name, self.blocks, self.image_size = name, evenly_spaced(depth), tuple(image_size)
        self.pyramid = Pyramid(dim, grid_size)
        smp, channels, width = "segmentation_models_pytorch", (0, *self.pyramid.channels), 32 if name == "unet" else 256
        if name == "unet":
            kind = optional(f"{smp}.decoders.unet.decoder").UnetDecoder
            self.decoder = kind(channels, (256, 128, 64, width), n_blocks=4)
        else:
            kind = optional(f"{smp}.decoders.upernet.decoder").UPerNetDecoder
            self.decoder = kind((0, *channels), decoder_channels=width)
        optional(f"{smp}.base.initialization").initialize_decoder(self.decoder)
        for path, module in list(self.decoder.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                self.decoder.set_submodule(path, group_norm(module.num_features))
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, tokens: list[Tensor]) -> Tensor:
        """tokens: (B, N, d) of each of ``blocks``, prefix tokens first -> logits (B, classes, H, W)."""
        maps = self.pyramid(tokens)
        full = maps[0].new_empty(len(maps[0]), 0, *self.image_size)  # UNet reads its size, UPerNet nothing of it
        stages = [full, *maps] if self.name == "unet" else [full, full, *maps]
        logits = self.classifier(self.decoder(stages))
        return F.interpolate(logits, self.image_size, mode="bilinear", align_corners=False)


def build_decoder(name: str, model: nn.Module, classes: int) -> nn.Module:
    """A decoder for an ``AdaptedViT``, by name; ValueError for an unknown one."""
    if name not in DECODERS:
        raise ValueError(f"decoder={name!r}; choose from {', '.join(DECODERS)}")
    shape = (model.vit.embed_dim, classes, model.grid_size, model.image_size)
    return LinearDecoder(*shape) if name == "linear" else PyramidDecoder(name, len(model.vit.blocks), *shape)


def evenly_spaced(depth: int, count: int = 4) -> tuple[int, ...]:
    """Numbers of ``count`` blocks of ``depth``, the last among them: 2, 5, 8, 11 of twelve."""
    return tuple(-(-(i + 1) * depth // count) - 1 for i in range(count))


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of eight channels where that divides, else one group."""
    return nn.GroupNorm(channels // 8 if channels % 8 == 0 else 1, channels)
