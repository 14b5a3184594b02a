"""adapt: a backbone, a method and bands become one module. Counting, and saving and loading the adapter alone."""

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from peftlib.attention import UntangledBlock, auxiliary_after_norm
from peftlib.backbones import BackboneSpec, backbone_hash, encoder_parameters, pair, resize_, spec_of
from peftlib.bands import BandSet, band_set
from peftlib.methods import METHODS, Method
from peftlib.reflectance import Channels, ReflectanceInput
from peftlib.weights import atomic_path, fingerprint

FORMAT = "peftlib adapter 1"


class AdaptedViT(nn.Module):
    """A ViT that reads multispectral reflectance. Made by ``adapt``.

    Attributes:
        vit: the changed copy of the backbone.
        auxiliary: what makes x_A, or None.
        reflectance: checks and normalises the image.
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
    ):
        super().__init__()
        self.spec = spec_of(vit)
        self.backbone_hash = backbone_hash(vit)
        self.encoder_parameters = sum(p.numel() for p in encoder_parameters(vit).values())
        resize_(vit, image_size)
        self.method, self.bands, self.image_size = method, bands, image_size
        self.auxiliary = method.inject(vit, bands)
        self.vit = vit
        self.reflectance = ReflectanceInput(
            bands, image_size, self.spec.mean, self.spec.std, rgb_white, nodata, self.spec.rgb_order
        )
        self.reflectance.to(vit.patch_embed.proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Same as ``forward_features``, so that wrappers (DDP, ``torch.compile``) reach it."""
        return self.forward_features(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) reflectance in [0, 1], bands in the order given -> tokens (B, N, d).

        Prefix tokens come first, then patches row by row.
        """
        z, z_A = self.embed(x)
        for block in self.vit.blocks:
            z = self.through(block, z, z_A)
        return self.vit.norm(z)

    def through(self, block: nn.Module, z: Tensor, z_A: Tensor | None) -> Tensor:
        """Tokens after a block: (B, N, d). Honours timm's ``vit.set_grad_checkpointing()``."""
        arguments = (z, z_A) if isinstance(block, UntangledBlock) else (z,)
        if self.vit.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What enters the first block: z (B, N, d) with positions and prefix tokens, and its auxiliary part z_A."""
        x_P, x_A = self.embed_patches(self.reflectance(x))
        z = self.vit._pos_embed(x_P if x_A is None else x_P + x_A)
        z_A = None if x_A is None else F.pad(x_A, (0, 0, self.vit.num_prefix_tokens, 0))
        if z_A is not None and isinstance(self.vit.norm_pre, nn.LayerNorm):  # CLIP's ViTs
            z_A = auxiliary_after_norm(self.vit.norm_pre, z, z_A)
        return self.vit.norm_pre(z), z_A

    def embed_patches(self, channels: Channels) -> tuple[Tensor, Tensor | None]:
        """x_P and x_A, each (B, n, d)."""
        seen = torch.cat([channels.rgb, channels.beyond], dim=1) if self.method.inflated else channels.rgb
        x_P = self.vit.patch_embed(seen)
        return x_P, (None if self.auxiliary is None else self.auxiliary(channels))

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

    Raises:
        ValueError: what was given, what is needed, and the choices.
    """
    if not isinstance(vit, VisionTransformer):
        raise ValueError(f"adapt needs a timm VisionTransformer, got {type(vit).__name__}")
    if not isinstance(method, Method):
        choices = ", ".join(f"{c.__name__}()" for c in METHODS.values())
        raise ValueError(f"method={method!r}; give a config, one of {choices}")
    if getattr(vit, "peftlib_adapted", False):
        raise ValueError("this ViT was already adapted in place; load the backbone again")
    if not isinstance(vit.patch_drop, nn.Identity):
        raise ValueError("peftlib needs every patch token; build the ViT with patch_drop_rate=0")
    if not isinstance(vit.patch_embed, PatchEmbed):
        raise ValueError(f"peftlib needs timm's plain PatchEmbed, this ViT has a {type(vit.patch_embed).__name__}")
    if vit.patch_embed.proj.in_channels != 3:
        raise ValueError(
            f"adapt needs a ViT pretrained on RGB, this one reads {vit.patch_embed.proj.in_channels} channels"
        )
    resolved = band_set(bands, sensor)
    size = pair(image_size if image_size is not None else vit.patch_embed.img_size)
    if inplace:  # what is going to fail shall fail before the user's only copy is touched
        with torch.random.fork_rng(devices=[]):
            AdaptedViT(_without_weights(vit), method, resolved, size, rgb_white, nodata)
    else:
        vit = copy.deepcopy(vit)
    model = AdaptedViT(vit, method, resolved, size, rgb_white, nodata)
    vit.peftlib_adapted = True
    return model.train(vit.training)  # new modules start in training mode; a backbone in eval mode stays in it


def _without_weights(vit: VisionTransformer) -> VisionTransformer:
    """A copy on the meta device, which takes no memory."""
    tensors = [*vit.parameters(), *vit.buffers()]
    return copy.deepcopy(vit, {id(t): torch.empty_like(t, device="meta") for t in tensors})


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


# --- the adapter alone, on disk --------------------------------------------------------------------------------------


def save_adapter(model: AdaptedViT, path: str | Path) -> Path:
    """Write tuned parameters and normalisation, with the config and the backbone's hash, as safetensors.

    Written by rename: an interrupted call leaves the former file whole.
    """
    bands = model.bands
    config = {
        "method": model.method.name,
        "options": asdict(model.method),
        "bands": dict(zip(bands.names, bands.wavelengths, strict=True)) if bands.sensor == "custom" else bands.names,
        "sensor": bands.sensor,
        "image_size": model.image_size,
        "rgb_white": model.reflectance.rgb_white,
        "nodata": model.reflectance.nodata,
        "indices": None if model.auxiliary is None else model.auxiliary.indices.names,
        "input": _input_facts(model.spec),
    }
    state = {name: tensor.contiguous().cpu() for name, tensor in model.adapter_state().items()}
    metadata = {
        "format": FORMAT,
        "config": json.dumps(config),
        "backbone": model.spec.name,
        "backbone_hash": model.backbone_hash,
    }
    metadata["digest"] = _digest(metadata, state)
    path = Path(path)
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata=metadata)
    return path


def load_adapter(
    vit: VisionTransformer,
    path: str | Path,
    image_size: int | tuple[int, int] | None = None,
    inplace: bool = False,
) -> AdaptedViT:
    """Adapt a backbone with an adapter from disk.

    Args:
        vit: the backbone that the adapter was trained on.
        path: a file of ``save_adapter``.
        image_size: side, or (H, W), in pixels, where images are of another size than in training.
        inplace: as in ``adapt``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a whole adapter file, or one of another backbone.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no adapter at {path}")
    metadata, state = _read_adapter(path)
    found = backbone_hash(vit)
    if found != metadata["backbone_hash"]:
        raise ValueError(
            f"adapter {path.name} belongs to backbone {metadata['backbone']} ({metadata['backbone_hash'][:12]}), "
            f"and this is {spec_of(vit).name} with other weights ({found[:12]})"
        )
    config = json.loads(metadata["config"])
    here = _input_facts(spec_of(vit))
    if config["input"] != here:
        raise ValueError(
            f"adapter {path.name} was trained with {config['input']}, this backbone has {here} "
            "(res: ground sampling distance in metres, see load_backbone)"
        )
    method = _method_from(config["method"], config["options"])
    trained_at = tuple(config["image_size"])
    if "vit.pos_embed" in state and image_size is not None and pair(image_size) != trained_at:
        raise ValueError(
            f"adapter {path.name} tuned the position embedding at {trained_at}; it has no other image size"
        )
    model = adapt(
        vit, method, config["bands"], config["sensor"], trained_at if image_size is None else image_size,
        rgb_white=config["rgb_white"], nodata=config["nodata"], inplace=inplace,
    )  # fmt: skip
    names = None if model.auxiliary is None else list(model.auxiliary.indices.names)
    if names != config["indices"]:
        raise ValueError(f"adapter {path.name} reads indices {config['indices']}, here they would be {names}")
    expected = model.adapter_state()
    wrong = sorted(
        set(expected) ^ set(state) | {n for n in set(expected) & set(state) if expected[n].shape != state[n].shape}
    )
    if wrong:
        raise ValueError(f"adapter {path.name} does not fit {method}: {wrong[:5]} ({len(wrong)} in all)")
    model.load_state_dict(state, strict=False)  # names and shapes were checked above; the rest is the backbone
    return model


def _read_adapter(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file; truncated or damaged? ({error})") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no adapter of this library (format {metadata.get('format')!r}, need {FORMAT!r})")
    if metadata.get("digest") != _digest(metadata, state):
        raise ValueError(f"{path} is damaged: its contents are not those that were saved")
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ValueError(f"{path} has non-finite values in {bad[:5]}")
    return metadata, state


def _input_facts(spec: BackboneSpec) -> dict:
    """What the weights do not show and the tokens depend on."""
    return {"mean": list(spec.mean), "std": list(spec.std), "channels": spec.channels, "res": spec.res}


def _digest(metadata: Mapping[str, str], state: Mapping[str, Tensor]) -> str:
    """sha256 over everything in an adapter file, so that a flipped bit is an error and no other model."""
    facts = json.dumps({key: value for key, value in metadata.items() if key != "digest"}, sort_keys=True)
    return hashlib.sha256((facts + fingerprint(state)).encode()).hexdigest()


def _method_from(name: str, options: dict) -> Method:
    if name not in METHODS:
        raise ValueError(f"adapter of unknown method {name!r}; choose from {', '.join(METHODS)}")
    as_tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    known = {field.name for field in fields(METHODS[name])}
    if not set(as_tuples) <= known:
        raise ValueError(
            f"adapter has options {sorted(set(as_tuples) - known)} that {name} does not know: {sorted(known)}"
        )
    return METHODS[name](**as_tuples)
