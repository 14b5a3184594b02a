"""Small models and images that the tests share, and patience."""

import time
from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import peftlib as pl
from peftlib.deflect.time_series import SeriesEMB, series_bands
from peftlib.methods import Input, Method
from peftlib.sensors.bands import BandSet, band_set

SENTINEL2 = tuple(pl.SENSORS["sentinel2"])  # 13 bands; red, green, blue are B04, B03, B02
SAVANNA = ("B02", "B03", "B04", "B08")  # blue first, as files have them
COLOURS = ("B04", "B03", "B02")
PATIENCE = 600  # seconds that a loaded machine may need to start a process


def wait_for(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def tiny_vit(seed: int = 0, name: str = "", **options) -> VisionTransformer:
    """A ViT of 32 px, 16 patches and 2 prefix tokens whose every parameter matters (none is 0, 1 or equal to another).

    Fresh LayerNorms, biases and layer scales would hide a term that is dropped or applied twice. ``name``: of
    timm, such as one of ``EVAS``, with prefix tokens of its own.
    """
    settings = dict(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=0)
    settings |= ({} if name else dict(init_values=0.5, reg_tokens=1)) | options
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vit = timm.create_model(name, **settings) if name else VisionTransformer(**settings)
        with torch.no_grad():
            for parameter in vit.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return vit.eval()


# timm's other class, for ``tiny_vit``: as it is; with biases of q and v beside their product; with a gated MLP; with q,
# k and v apart and a norm in the MLP; with a norm before the blocks and another attention; with learnt rotations.
EVAS = (
    "vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb", "eva02_tiny_patch14_224", "eva02_base_patch14_224",
    "vit_pe_spatial_tiny_patch16_512", "vit_small_patch16_rope_mixed_224",
)  # fmt: skip


def images(bands=SENTINEL2, sensor="sentinel2", batch=2, size=(32, 32), seed=0) -> Tensor:
    """Random reflectance (B, C, H, W) in [0.01, 0.5]; thermal bands in kelvin."""
    bands = band_set(bands, sensor)
    x = 0.01 + 0.49 * torch.rand(batch, len(bands), *size, generator=torch.Generator().manual_seed(seed))
    for i in bands.thermal:
        x[:, i] = 280 + 20 * x[:, i]
    return x


def randomise(module: nn.Module, scale: float = 0.2, seed: int = 1) -> nn.Module:
    """Move every trainable parameter off its start, as training would."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=draw).to(parameter))
    return module


def adapted(method, bands=SENTINEL2, vit=None, seed=0, **options) -> pl.AdaptedViT:
    """A freshly adapted tiny ViT, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return pl.adapt(vit if vit is not None else tiny_vit(), method, bands, **options)


def fits(method: Method | type[Method], input: Input | type[Input]) -> bool:
    return input.gives_auxiliary or not method.needs_auxiliary


def bands_for(input: Input) -> BandSet:
    """Bands that an input can read: two dates for what reads dates, else all of Sentinel-2."""
    return series_bands(SAVANNA, 2) if isinstance(input, SeriesEMB) else band_set(SENTINEL2)


def tuned(model: nn.Module) -> set[str]:
    """Names of the trainable parameters."""
    return {name for name, p in model.named_parameters() if p.requires_grad}


def snapshot(module: nn.Module) -> dict[str, tuple[bool, Tensor]]:
    """Name -> whether the parameter is trainable, and its values."""
    return {name: (p.requires_grad, p.detach().clone()) for name, p in module.named_parameters()}


def assert_only_tuned_moved(module: nn.Module, before: dict[str, tuple[bool, Tensor]]) -> None:
    for name, parameter in module.named_parameters():
        trainable, start = before[name]
        assert parameter.requires_grad == trainable and torch.equal(parameter, start) != trainable, name


def pretrained_tokens(vit: VisionTransformer, x: Tensor, rgb=(3, 2, 1), white: float = 0.3) -> Tensor:
    """What the pretrained model says to the RGB part of an image, with the stretch written out."""
    colours = torch.stack([x[:, i] for i in rgb], dim=1)
    shown = torch.clamp(colours / white, 0, 1)
    of_timm = getattr(vit, "pretrained_cfg", {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)})
    mean, std = (torch.tensor(of_timm[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        return vit.forward_features((shown - mean) / std)


def shuffle_pixels(x: Tensor, patch: int, seed: int = 0) -> Tensor:
    """Shuffle the pixels inside every patch, all bands of a pixel together. x: (B, C, H, W) -> same shape."""
    B, C, H, W = x.shape
    pixels = F.unfold(x, patch, stride=patch).reshape(B, C, patch * patch, -1)
    draw = torch.Generator().manual_seed(seed)
    order = torch.rand(B, 1, *pixels.shape[2:], generator=draw).argsort(dim=2).expand(-1, C, -1, -1)
    return F.fold(pixels.gather(2, order).flatten(1, 2), (H, W), patch, stride=patch)
