"""adapt: a backbone, a method and bands become one module. Counting what it tunes, and merging it away again."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from peftlib.backbones.loading import backbone_hash, encoder_parameters, pair, resize_, spec_of
from peftlib.deflect.attention import UntangledBlock, auxiliary_after_norm
from peftlib.methods import METHODS, Method
from peftlib.model.metadata import MetadataEmbedding
from peftlib.sensors.bands import BandSet, band_set
from peftlib.sensors.reflectance import Channels, ReflectanceInput

_READS_BANDS = "; for a model that reads your bands already there is peftlib.integrations.adapt_blocks"


class AdaptedViT(nn.Module):
    """A ViT that reads multispectral reflectance. Made by ``adapt``.

    Attributes:
        vit: the changed copy of the backbone.
        auxiliary: what makes x_A, or None.
        reflectance: checks and normalises the image.
        metadata: what makes an embedding of location, date and ground sampling distance, or None.
        method, bands, image_size, spec: what it was made of.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        method: Method,
        bands: BandSet,
        image_size: tuple[int, int],
        rgb_white: float,
        nodata: str,
        metadata: Sequence[str] = (),
    ):
        super().__init__()
        self.spec = spec_of(vit)
        self.backbone_hash = backbone_hash(vit)
        self.encoder_parameters = sum(p.numel() for p in encoder_parameters(vit).values())
        resize_(vit, image_size)
        self.method, self.bands, self.image_size = method, bands, image_size
        self.plain_modules = {name: type(module) for name, module in vit.named_modules()}
        self.auxiliary = method.inject(vit, bands)
        self.vit = vit
        self.reflectance = self.reading(bands, rgb_white, nodata)
        self.metadata = MetadataEmbedding(metadata, vit.embed_dim).to(vit.patch_embed.proj.weight) if metadata else None

    def reading(self, bands: BandSet, rgb_white: float, nodata: str) -> ReflectanceInput:
        """What checks and normalises images of these bands for this model, with the sensor's default statistics."""
        spec, resample = self.spec, self.method.resampling(bands)
        read = ReflectanceInput(
            bands, self.image_size, spec.mean, spec.std, rgb_white, nodata, spec.rgb_order, resample
        )
        return read.to(self.vit.patch_embed.proj.weight)

    def forward(self, x: Tensor, described: Tensor | None = None) -> Tensor:
        """Same as ``forward_features``, so that wrappers (DDP, ``torch.compile``) reach it."""
        return self.forward_features(x, described)

    def forward_features(self, x: Tensor, described: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W) reflectance in [0, 1], bands in the order given -> tokens (B, N, d).

        Prefix tokens come first, then patches row by row.

        Args:
            described: (B, K) of ``peftlib.model.metadata.describe``, for a model with metadata; None is unknown.
        """
        z, z_A = self.embed(x, described)
        for block in self.vit.blocks:
            z = self.through(block, z, z_A)
        return self.vit.norm(z)

    def intermediate_tokens(self, x: Tensor, blocks: Sequence[int], described: Tensor | None = None) -> list[Tensor]:
        """Tokens after several blocks, each with the final norm on it, for decoders that read more than the last one.

        What a method carries along between blocks (the prompts of a shallow ``VPT``) is left out.

        Args:
            x: (B, C, H, W) reflectance.
            blocks: numbers of blocks, from 0.
            described: as in ``forward_features``.

        Returns:
            (B, N, d) for each of ``blocks``: prefix tokens, then patches row by row.

        Raises:
            ValueError: no blocks, or one that the ViT does not have.
        """
        depth, prefix, patches = len(self.vit.blocks), self.vit.num_prefix_tokens, math.prod(self.grid_size)
        if not blocks or not all(0 <= number < depth for number in blocks):
            raise ValueError(f"blocks={tuple(blocks)}; this ViT has blocks 0 to {depth - 1}")
        z, z_A = self.embed(x, described)
        tokens = {}
        for number, block in enumerate(self.vit.blocks):
            z = self.through(block, z, z_A)
            if number in blocks:
                own = z if z.shape[1] == prefix + patches else torch.cat([z[:, :prefix], z[:, -patches:]], dim=1)
                tokens[number] = self.vit.norm(own)
            if number == max(blocks):
                break
        return [tokens[number] for number in blocks]

    def through(self, block: nn.Module, z: Tensor, z_A: Tensor | None) -> Tensor:
        """Tokens after a block: (B, N, d). Honours timm's ``vit.set_grad_checkpointing()``."""
        arguments = (z, z_A) if isinstance(block, UntangledBlock) else (z,)
        if self.vit.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)

    def embed(self, x: Tensor, described: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What enters the first block: z (B, N, d) with positions and prefix tokens, and its auxiliary part z_A."""
        x_P, x_A = self.embed_patches(self.reflectance(x))
        if described is not None:
            if self.metadata is None:
                raise ValueError("this model reads no metadata; adapt(..., metadata=('location', 'date')) would")
            x_P = x_P + self.metadata(described)
        z = self.vit._pos_embed(x_P if x_A is None else x_P + x_A)
        z_A = None if x_A is None else F.pad(x_A, (0, 0, self.vit.num_prefix_tokens, 0))
        if z_A is not None and isinstance(self.vit.norm_pre, nn.LayerNorm):  # CLIP's ViTs
            z_A = auxiliary_after_norm(self.vit.norm_pre, z, z_A)
        return self.vit.norm_pre(z), z_A

    def embed_patches(self, channels: Channels) -> tuple[Tensor, Tensor | None]:
        """x_P and x_A, each (B, n, d)."""
        x_P = self.vit.patch_embed(self.seen(channels))
        return x_P, (None if self.auxiliary is None else self.auxiliary(channels))

    def seen(self, channels: Channels) -> Tensor:
        """What the patch embedding reads: normalised RGB (B, 3, H, W), or with an inflated one all bands, RGB first."""
        return torch.cat([channels.rgb, channels.beyond], dim=1) if self.method.inflated else channels.rgb

    def normalize(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) reflectance -> what the patch embedding, or the ViT of ``merge``, reads: (B, C', H, W)."""
        return self.seen(self.reflectance(x))

    def fit_normalization(self, batches: Iterable) -> "AdaptedViT":
        """Set mean and deviation of the bands beyond RGB from data; see ``ReflectanceInput.fit``."""
        self.reflectance.fit(batches)
        return self

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches (down, across)."""
        return tuple(self.vit.patch_embed.grid_size)

    def adapter_state(self) -> dict[str, Tensor]:
        """What a task adds to the backbone: tuned parameters and the fitted normalisation."""
        state = {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}
        state |= {f"vit.{name}": tensor for name, tensor in self.method.fixed_state(self.vit).items()}
        return state | {f"reflectance.{name}": b for name, b in self.reflectance.state_dict().items()}


def adapt(
    vit: VisionTransformer,
    method: Method,
    bands: Sequence[str] | Mapping[str, float],
    sensor: str = "sentinel2",
    image_size: int | tuple[int, int] | None = None,
    rgb_white: float = 0.3,
    nodata: str = "error",
    inplace: bool = False,
    metadata: Sequence[str] = (),
) -> AdaptedViT:
    """Adapt an RGB-pretrained ViT to multispectral images.

    Args:
        vit: a timm ``VisionTransformer``, from ``load_backbone`` or your own.
        method: a config such as ``Deflect()`` or ``LoRA(rank=8)``; see ``METHODS``.
        bands: band names in the order of the image's channels (``sensor="custom"``: name -> centre wavelength in nm).
        sensor: ``"sentinel2"``, ``"landsat8"``, ``"hls"`` or ``"custom"``.
        image_size: side, or (H, W), in pixels; None is the backbone's own.
        rgb_white: reflectance shown as white to the RGB backbone.
        nodata: ``"error"`` refuses NaN and infinite pixels (on a GPU, looked for in the first batch only); ``"zero"``
            gives such RGB values the backbone's mean colour and leaves such pixels out of the pixel set.
        inplace: change ``vit`` itself and spare the memory of a copy.
        metadata: of ``"location"``, ``"date"``, ``"gsd"``: tune an embedding of them that is added to the patch tokens.

    Raises:
        ValueError: what was given, what is needed, and the choices.
    """
    if not isinstance(vit, VisionTransformer):
        raise ValueError(f"adapt needs a timm VisionTransformer, got {type(vit).__name__}{_READS_BANDS}")
    if not isinstance(method, Method):
        choices = ", ".join(f"{c.__name__}()" for c in METHODS.values())
        raise ValueError(f"method={method!r}; give a config, one of {choices}")
    if getattr(vit, "peftlib_adapted", False):
        raise ValueError("this ViT was already adapted in place; load the backbone again")
    if not isinstance(vit.patch_drop, nn.Identity):
        raise ValueError("peftlib needs every patch token; build the ViT with patch_drop_rate=0")
    if not isinstance(vit.patch_embed, PatchEmbed):
        raise ValueError(f"peftlib needs timm's plain PatchEmbed, this ViT has a {type(vit.patch_embed).__name__}")
    if (channels := vit.patch_embed.proj.in_channels) != 3:
        raise ValueError(f"adapt needs a ViT pretrained on RGB, this one reads {channels} channels{_READS_BANDS}")
    resolved = band_set(bands, sensor)
    size = pair(image_size if image_size is not None else vit.patch_embed.img_size)
    if inplace:  # what is going to fail shall fail before the user's only copy is touched
        with torch.random.fork_rng(devices=[]):
            AdaptedViT(without_weights(vit), method, resolved, size, rgb_white, nodata, metadata)
    else:
        vit = copy.deepcopy(vit)
    model = AdaptedViT(vit, method, resolved, size, rgb_white, nodata, metadata)
    vit.peftlib_adapted = True
    return model.train(vit.training)  # new modules start in training mode; a backbone in eval mode stays in it


def without_weights(module: nn.Module) -> nn.Module:
    """A copy on the meta device: it has shapes and takes no memory."""
    shapes = {id(b): torch.empty_like(b, device="meta") for b in module.buffers()}
    for p in module.parameters():
        shapes[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
    return copy.deepcopy(module, shapes)


def count_parameters(model: AdaptedViT) -> dict[str, float]:
    """How much of the encoder a method tunes.

    Returns:
        ``encoder``: parameters of the backbone without head; ``tuned``: trainable parameters; ``tuned_input``: those of
        them that read bands (patch embedding, pixel-set encoder); ``percent``: 100 * tuned / encoder.
    """
    tuned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "encoder": model.encoder_parameters,
        "tuned": tuned,
        "tuned_input": model.method.tuned_input(model.vit, model.auxiliary),
        "percent": 100.0 * tuned / model.encoder_parameters,
    }


def merge(model: AdaptedViT) -> VisionTransformer:
    """Fold an adaptation into the weights of a plain timm ViT, which costs what the pretrained one does.

    ``merge(model).forward_features(model.normalize(x))`` equals ``model(x)`` in eval mode, but for rounding.

    Raises:
        ValueError: a method that does more than a plain ViT can (DEFLECT, Houlsby, VPT, Earth-Adapter).
    """
    if not isinstance(model, AdaptedViT):
        raise ValueError(f"merge needs a model made by adapt, got {type(model).__name__}")
    if model.metadata is not None:
        raise ValueError(f"a plain ViT reads no metadata, and this model reads {', '.join(model.metadata.names)}")
    vit = model.method.merge(copy.deepcopy(model.vit))
    left = {name for name, module in vit.named_modules() if model.plain_modules.get(name) is not type(module)}
    if left or model.auxiliary is not None:
        name = min(left, key=lambda name: (len(name), name)) if left else "auxiliary"
        kind = type((vit if left else model).get_submodule(name)).__name__
        raise ValueError(
            f"{model.method.name} does more than a plain ViT can: {name} is a {kind}. "
            "Merged can be LoRA, SLR, norm tuning, BitFit, full fine-tuning, the patch embedding, and HF peft's"
        )
    vit.spec = replace(model.spec, weights=f"{model.spec.weights}, merged with {model.method.name}")
    del vit.peftlib_adapted
    return vit.requires_grad_(True).eval()
