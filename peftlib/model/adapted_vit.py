"""adapt: a backbone, an input, a method and bands become one module."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from peftlib.backbones.blocks import call_layers, refuse_other_vit, rotation
from peftlib.backbones.loading import backbone_hash, encoder_parameters, pair, resize_, spec_of
from peftlib.deflect.attention import UntangledBlock, auxiliary_after_norm
from peftlib.methods.base import INPUTS, METHODS, Config, Input, Method
from peftlib.model.metadata import MetadataEmbedding
from peftlib.model.precision import BF16_FROZEN, FLOAT32, PRECISIONS, choose_attention, round_frozen
from peftlib.sensors.bands import BandSet, band_set
from peftlib.sensors.reflectance import Reflectance


class AdaptedViT(nn.Module):
    """A ViT that reads multispectral reflectance. Made by ``adapt``.

    Attributes:
        vit: the changed copy of the backbone; auxiliary: what makes x_A, or None.
        reflectance: checks and normalises the image; metadata: what embeds location, date and gsd, or None.
        input, method, bands, image_size, precision, spec: what it was made of; grid_size: patches (down, across).
        reading: how the files of its training images are read, see ``peftlib.data.reading``; or empty.
    """

    def __init__(
        self, vit: VisionTransformer, method: Method, input: Input, bands: BandSet, image_size: tuple[int, int],
        rgb_white: float, nodata: str, metadata: Sequence[str] = (), precision: str = FLOAT32,
    ):  # fmt: skip
        super().__init__()
        self.spec = spec_of(vit)
        self.backbone_hash = backbone_hash(vit)
        self.encoder_parameters = sum(p.numel() for p in encoder_parameters(vit).values())
        resize_(vit, image_size)
        call_layers(vit)
        self.method, self.input, self.bands, self.image_size = method, input, bands, image_size
        self.plain_modules = {name: type(module) for name, module in vit.named_modules()}
        self.grid_size = tuple(vit.patch_embed.grid_size)
        self.vit = vit.requires_grad_(False)
        self.auxiliary = input.inject(vit, bands)
        self.metadata = MetadataEmbedding(metadata, vit.embed_dim).to(vit.patch_embed.proj.weight) if metadata else None
        self._input_names = {name for name, p in self.named_parameters() if p.requires_grad}
        pretrained = {module for module in vit.blocks.modules() if isinstance(module, nn.Linear)}
        method.inject(vit)
        self.precision = precision
        if precision == BF16_FROZEN:
            round_frozen(vit, pretrained)
        self.reflectance = self.reflectance_of(bands, rgb_white, nodata)
        self.reading: dict = {}

    def reflectance_of(self, bands: BandSet, rgb_white: float, nodata: str) -> Reflectance:
        """What checks and normalises images of these bands for this model, with the sensor's default statistics."""
        spec, resample = self.spec, self.input.resampling(bands)
        made = Reflectance(bands, self.image_size, spec.mean, spec.std, rgb_white, nodata, resample)
        return made.to(self.vit.patch_embed.proj.weight)

    def forward_features(self, x: Tensor, metadata: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W) reflectance in [0, 1], bands in the order given -> tokens (B, N, d).

        Prefix tokens come first, then patches row by row. ``metadata``: (B, K) of
        ``peftlib.sensors.metadata.encode_metadata``, if the model reads it; None is unknown.
        """
        return self.intermediate_tokens(x, [len(self.vit.blocks) - 1], metadata)[0]

    forward = forward_features  # so that wrappers (DDP, ``torch.compile``) reach it

    def intermediate_tokens(self, x: Tensor, blocks: Sequence[int], metadata: Tensor | None = None) -> list[Tensor]:
        """Tokens after several blocks, each with the final norm on it, for decoders that read more than the last one.

        ``blocks`` are numbers from 0, else ValueError; all else is as in ``forward_features``. What a method carries
        along between blocks (the prompts of a shallow ``VPT``) is left out.
        """
        depth, prefix, patches = len(self.vit.blocks), self.vit.num_prefix_tokens, math.prod(self.grid_size)
        if not blocks or not all(0 <= number < depth for number in blocks):
            raise ValueError(f"blocks={tuple(blocks)}; this ViT has blocks 0 to {depth - 1}")
        z, z_A = self.embed(x, metadata)
        tokens = {}
        for number, block in enumerate(self.vit.blocks[: max(blocks) + 1]):
            z, z_A = self.run_block(block, z, z_A)
            if number in blocks:
                own = z if z.shape[1] == prefix + patches else torch.cat([z[:, :prefix], z[:, -patches:]], dim=1)
                tokens[number] = self.vit.norm(own)
        return [tokens[number] for number in blocks]

    def run_block(self, block: nn.Module, z: Tensor, z_A: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """z behind a block, (B, N, d), and z_A, which a plain one leaves. Honours ``vit.set_grad_checkpointing()``."""
        untangled = isinstance(block, UntangledBlock)
        arguments, beside = (z, z_A) if untangled else (z,), rotation(self.vit, block)
        if self.vit.grad_checkpointing and torch.is_grad_enabled():
            out = checkpoint(block, *arguments, use_reentrant=False, **beside)
        else:
            out = block(*arguments, **beside)
        return out if untangled else (out, z_A)

    def embed(self, x: Tensor, metadata: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What enters the first block: z (B, N, d) with positions and prefix tokens, and its auxiliary part z_A."""
        x_P, x_A = self.embed_patches(x)
        if metadata is not None:
            if self.metadata is None:
                raise ValueError("this model reads no metadata; adapt(..., metadata=('location', 'date')) would")
            x_P = x_P + self.metadata(metadata)
        x = x_P if x_A is None else x_P + x_A
        z = self.vit._pos_embed(x.unflatten(1, self.grid_size) if self.vit.dynamic_img_size else x)
        z = z[0] if isinstance(z, tuple) else z  # beside rotary positions, which ``run_block`` gives to each block
        z_A = None if x_A is None else F.pad(x_A, (0, 0, self.vit.num_prefix_tokens, 0))
        if z_A is not None and isinstance(self.vit.norm_pre, nn.LayerNorm):  # CLIP's ViTs
            z_A = auxiliary_after_norm(self.vit.norm_pre, z, z_A)
        return self.vit.norm_pre(z), z_A

    def embed_patches(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x: (B, C, H, W) reflectance -> x_P (B, n, d), and x_A or None."""
        x_P = self.vit.patch_embed(self.normalize(x)).flatten(1, -2)  # of (B, n, d), or of a map
        return x_P, (None if self.auxiliary is None else self.auxiliary(self.reflectance, x))

    def normalize(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) reflectance -> what the patch embedding, or the ViT of ``merge``, reads: (B, C', H, W)."""
        self.reflectance.check(x)
        return self.input.patch_pixels(self.reflectance, x)

    def _apply(self, *arguments) -> "AdaptedViT":  # what ``to``, ``cuda`` and ``cpu`` call
        super()._apply(*arguments)
        if self.precision == BF16_FROZEN:
            choose_attention(self.vit)
        return self

    def fit_normalization(self, batches: Iterable) -> "AdaptedViT":
        """Set mean and deviation of the bands beyond RGB from data; see ``Reflectance.fit``. Keeps ``reading``."""
        self.reflectance.fit(batches)
        self.reading = getattr(getattr(batches, "dataset", None), "reading", self.reading)
        return self

    def tuned_parts(self) -> dict[str, dict[str, nn.Parameter]]:
        """Trainable parameters by name: those of the ``"input"`` (with metadata's), and those of the ``"method"``."""
        parts: dict[str, dict[str, nn.Parameter]] = {"input": {}, "method": {}}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                parts["input" if name in self._input_names else "method"][name] = parameter
        return parts

    def adapter_state(self) -> dict[str, Tensor]:
        """What a task adds to the backbone: tuned parameters and the fitted normalisation."""
        state = {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}
        state |= {f"vit.{name}": tensor for name, tensor in self.method.fixed_state(self.vit).items()}
        return state | {f"reflectance.{name}": b for name, b in self.reflectance.state_dict().items()}


def adapt(
    vit: VisionTransformer,
    method: Method,
    bands: BandSet | Sequence[str] | Mapping[str, float],
    sensor: str = "sentinel2",
    image_size: int | tuple[int, int] | None = None,
    input: Input | None = None,
    rgb_white: float = 0.3,
    nodata: str = "error",
    metadata: Sequence[str] = (),
    precision: str = FLOAT32,
) -> AdaptedViT:
    """Adapt an RGB-pretrained ViT to multispectral images. ValueErrors say what was given, what is needed, the choices.

    Args:
        vit: a timm ``VisionTransformer`` or ``Eva``, from ``load_backbone`` or your own.
        method: how the blocks adapt: a config such as ``Deflect()`` or ``LoRA(rank=8)``; see ``METHODS``.
        bands: band names in the order of the image's channels (``sensor="custom"``: name -> centre wavelength in nm).
        sensor: ``"sentinel2"``, ``"landsat8"``, ``"hls"`` or ``"custom"``.
        image_size: side, or (H, W), in pixels; None is the backbone's own.
        input: how the bands come in: ``RGB()``, ``Inflated()`` or ``EMB()``; see ``INPUTS``. None is the method's
            own: ``EMB()`` for ``Deflect``, ``RGB()`` for all others.
        rgb_white: reflectance shown as white to the RGB backbone.
        nodata: ``"error"`` refuses NaN and infinite pixels (on a GPU, looked for in the first batch only); ``"zero"``
            gives such RGB values the backbone's mean colour and leaves such pixels out of the pixel set.
        metadata: of ``"location"``, ``"date"``, ``"gsd"``: tune an embedding of them that is added to the patch tokens.
        precision: ``"float32"``, or ``"bf16-frozen"``: frozen linear layers in bfloat16, all else in float32; see
            ``peftlib.model.precision``.
    """
    refuse_other_vit("this model", vit)
    input = _chosen(method, input)
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}; choose from {PRECISIONS}")
    if (channels := vit.patch_embed.proj.in_channels) != 3:
        raise ValueError(f"adapt needs a ViT pretrained on RGB; for one of {channels} channels use HF peft alone")
    size = pair(image_size if image_size is not None else vit.patch_embed.img_size)
    made_of = (method, input, band_set(bands, sensor), size, rgb_white, nodata, metadata, precision)
    model = AdaptedViT(copy.deepcopy(vit), *made_of)
    return model.train(vit.training)  # new modules start in training mode; a backbone in eval mode stays in it


def _chosen(method: Method, input: Input | None) -> Input:
    """The input to use, once both are known to be what they should be, and to fit."""

    def choices(configs: Iterable[type[Config]]) -> str:
        return ", ".join(f"{config.__name__}()" for config in configs)

    if not isinstance(method, Method):
        raise ValueError(f"method={method!r}; give a method, one of {choices(METHODS.values())}; inputs go to input=")
    input = method.default_input() if input is None else input
    if not isinstance(input, Input):
        raise ValueError(f"input={input!r}; give an input, one of {choices(INPUTS.values())}; methods go to method=")
    if method.needs_auxiliary and not input.gives_auxiliary:
        fit = choices(config for config in INPUTS.values() if config.gives_auxiliary)
        raise ValueError(f"{method} needs an input that gives x_A, and {input} gives none; choose from {fit}")
    return input


def without_weights(module: nn.Module) -> nn.Module:
    """A copy on the meta device: it has shapes and takes no memory."""
    shapes = {id(b): torch.empty_like(b, device="meta") for b in module.buffers()}
    for p in module.parameters():
        shapes[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
    return copy.deepcopy(module, shapes)


def count_parameters(model: AdaptedViT) -> dict[str, float]:
    """How much of the encoder is tuned.

    ``encoder``: parameters of the backbone without head; ``input``, ``method``: trainable parameters of each;
    ``tuned``: of both; ``percent``: 100 * tuned / encoder.
    """
    parts = {part: sum(p.numel() for p in named.values()) for part, named in model.tuned_parts().items()}
    tuned, encoder = sum(parts.values()), model.encoder_parameters
    return {"encoder": encoder, **parts, "tuned": tuned, "percent": 100.0 * tuned / encoder}
