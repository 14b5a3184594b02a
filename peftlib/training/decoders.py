"""Heads that turn tokens into class maps: linear, and UNet and UPerNet on the tokens of four blocks."""

from collections.abc import Sequence
from importlib import import_module

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

    blocks = None  # reads what leaves the model, not single blocks

    def __init__(self, dim: int, classes: int, grid_size: tuple[int, int], image_size: tuple[int, int]):
        super().__init__()
        self.grid_size, self.image_size = tuple(grid_size), tuple(image_size)
        self.linear = nn.Linear(dim, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (B, N, d), prefix tokens first -> logits (B, classes, H, W)."""
        n = self.grid_size[0] * self.grid_size[1]
        logits = self.linear(tokens[:, -n:]).transpose(1, 2).unflatten(2, self.grid_size)
        return F.interpolate(logits, self.image_size, mode="bilinear", align_corners=False)


class Pyramid(nn.Module):
    """Tokens of four blocks, all on one grid -> maps of 4, 2, 1 and 1/2 times that grid, as a CNN's stages have them.

    Args:
        dim: width of the tokens.
        grid_size: patches (down, across); halved, an odd side is rounded up.

    Attributes:
        channels: of the four maps, finest first.
    """

    def __init__(self, dim: int, grid_size: tuple[int, int]):
        super().__init__()
        half, quarter = max(dim // 2, 1), max(dim // 4, 1)
        self.grid_size, self.channels = tuple(grid_size), (quarter, half, dim, dim)
        self.levels = nn.ModuleList(
            [
                nn.Sequential(doubled(dim, half), group_norm(half), nn.GELU(), doubled(half, quarter)),
                doubled(dim, half),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )

    def forward(self, tokens: list[Tensor]) -> list[Tensor]:
        """Four of (B, N, d), shallow to deep, prefix tokens first -> four maps (B, channels, h, w), fine to coarse."""
        n = self.grid_size[0] * self.grid_size[1]
        maps = [z[:, -n:].transpose(1, 2).unflatten(2, self.grid_size) for z in tokens]
        return [level(m) for level, m in zip(self.levels, maps, strict=True)]


class PyramidDecoder(nn.Module):
    """What UNet and UPerNet share. Their convolutions are segmentation-models-pytorch's, with group norm.

    Group norm instead of batch norm: what an image gets does not depend on its neighbours in the batch, a batch may be
    one image, and gradients gathered over small batches are those of the large one.

    Args:
        dim, classes, grid_size, image_size: as for ``LinearDecoder``.
        depth: number of blocks of the ViT; four evenly spaced ones are read, the last among them.

    Raises:
        ImportError: segmentation-models-pytorch is not installed.
    """

    def __init__(
        self, dim: int, classes: int, grid_size: tuple[int, int], image_size: tuple[int, int], depth: int
    ):  # fmt: skip
        super().__init__()
        self.blocks, self.image_size = evenly_spaced(depth), tuple(image_size)
        self.pyramid = Pyramid(dim, grid_size)
        self.decoder, width = self.build(self.pyramid.channels)
        _smp("base.initialization").initialize_decoder(self.decoder)
        for name, module in list(self.decoder.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                self.decoder.set_submodule(name, group_norm(module.num_features))
        self.classifier = nn.Conv2d(width, classes, 1)

    def build(self, channels: tuple[int, ...]) -> tuple[nn.Module, int]:
        """The decoder for maps of so many channels, and how many channels it gives."""
        raise NotImplementedError

    def stages(self, maps: list[Tensor]) -> Sequence[Tensor | None]:
        """The maps as the decoder expects the stages of its encoder, from full resolution down."""
        raise NotImplementedError

    def forward(self, tokens: list[Tensor]) -> Tensor:
        """tokens: (B, N, d) of each of ``blocks``, prefix tokens first -> logits (B, classes, H, W)."""
        logits = self.classifier(self.decoder(self.stages(self.pyramid(tokens))))
        return F.interpolate(logits, self.image_size, mode="bilinear", align_corners=False)


class UNetDecoder(PyramidDecoder):
    """UNet (Ronneberger et al., 2015): from coarse to fine, joining a map of the pyramid at each step.

    Args: as for ``PyramidDecoder``. Raises: likewise.
    """

    def build(self, channels: tuple[int, ...]) -> tuple[nn.Module, int]:
        widths = (256, 128, 64, 32)
        return _smp("decoders.unet.decoder").UnetDecoder((0, *channels), widths, n_blocks=len(widths)), widths[-1]

    def stages(self, maps: list[Tensor]) -> list[Tensor]:
        full = maps[0].new_empty(len(maps[0]), 0, *self.image_size)  # only its size is read
        return [full, *maps]


class UPerNetDecoder(PyramidDecoder):
    """UPerNet (Xiao et al., 2018): pyramid pooling of the coarsest map, then a feature pyramid, all maps joined.

    Args: as for ``PyramidDecoder``. Raises: likewise.
    """

    def build(self, channels: tuple[int, ...]) -> tuple[nn.Module, int]:
        width = 256
        decoder = _smp("decoders.upernet.decoder").UPerNetDecoder((0, 0, *channels), decoder_channels=width)
        return decoder, width

    def stages(self, maps: list[Tensor]) -> list[Tensor | None]:
        return [None, None, *maps]  # full and half resolution are not read


DECODERS = {"linear": LinearDecoder, "unet": UNetDecoder, "upernet": UPerNetDecoder}


def build_decoder(name: str, model: nn.Module, classes: int) -> nn.Module:
    """A decoder for an ``AdaptedViT``, by name.

    Raises:
        ValueError: an unknown name.
        ImportError: UNet and UPerNet without segmentation-models-pytorch.
    """
    if name not in DECODERS:
        raise ValueError(f"decoder={name!r}; choose from {', '.join(DECODERS)}")
    depth = {} if name == "linear" else {"depth": len(model.vit.blocks)}
    return DECODERS[name](model.vit.embed_dim, classes, model.grid_size, model.image_size, **depth)


def evenly_spaced(depth: int, count: int = 4) -> tuple[int, ...]:
    """Numbers of ``count`` blocks of ``depth``, the last among them: 2, 5, 8, 11 of twelve."""
    return tuple(-(-(i + 1) * depth // count) - 1 for i in range(count))


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of eight channels where that divides, else one group."""
    return nn.GroupNorm(channels // 8 if channels % 8 == 0 else 1, channels)


def doubled(dim_in: int, dim_out: int) -> nn.ConvTranspose2d:
    """A map of twice the size."""
    return nn.ConvTranspose2d(dim_in, dim_out, kernel_size=2, stride=2)


def _smp(module: str):
    """A module of segmentation-models-pytorch, which is an optional extra and takes seconds to import."""
    try:
        return import_module(f"segmentation_models_pytorch.{module}")
    except ImportError as error:
        raise ImportError(f"UNet and UPerNet need the optional extra: pip install 'peftlib[geo]' ({error})") from error
