"""Methods on ViTs that read multispectral bands already, such as Prithvi: only what they do to the blocks."""

from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block
from torch import nn

from peftlib.methods import SLR, BitFit, Houlsby, LoRA, Method, NormTuning
from peftlib.methods.base import IGNORE, InputMethod

# The others need an RGB patch embedding (DEFLECT, full), know the layout of tokens (VPT, Earth-Adapter), or are what
# the framework does itself (frozen, full fine-tuning).
BLOCK_METHODS = {config.name: config for config in (NormTuning, BitFit, LoRA, SLR, Houlsby)}


def adapt_blocks(vit: nn.Module, method: Method) -> nn.Module:
    """Freeze a ViT and put a method into its blocks, in place: input, positions and forward stay the model's own.

    In place, because models like TerraTorch's Prithvi carry a ``forward`` that holds on to the original, which a copy
    would go on calling.

    Args:
        vit: has ``blocks`` of timm's ``Block`` with its plain attention and MLP, ``patch_embed.proj``, ``embed_dim``.
        method: a config of ``BLOCK_METHODS``, such as ``LoRA(rank=8)``.

    Returns:
        ``vit`` itself. Its tuned parameters are those that require a gradient. ``method.merge(vit)`` folds LoRA and
        SLR into its layers.

    Raises:
        ValueError: a method that needs more than blocks, or a model with other blocks; nothing is changed then.
    """
    if not isinstance(method, InputMethod) or not isinstance(method, tuple(BLOCK_METHODS.values())):
        choices = ", ".join(f"{c.__name__}()" for c in BLOCK_METHODS.values())
        raise ValueError(f"method={method!r} does more than change blocks; choose one of {choices}")
    if method.new_bands != IGNORE:
        raise ValueError(f"new_bands={method.new_bands!r}: this model reads its bands already; leave it {IGNORE!r}")
    _refuse_unplain(vit)
    vit.requires_grad_(False)
    vit.patch_embed.requires_grad_(method.train_patch_embed)
    method.inject_blocks(vit)
    vit.peftlib_adapted = True
    return vit


def _refuse_unplain(vit: nn.Module) -> None:
    name = type(vit).__name__
    if getattr(vit, "peftlib_adapted", False):
        raise ValueError(f"this {name} was already adapted; build it again")
    blocks = getattr(vit, "blocks", None)
    if not isinstance(blocks, nn.ModuleList | nn.Sequential) or not len(blocks):
        attention = ", ".join(sorted({_path(m) for m in vit.modules() if "Attention" in type(m).__name__})) or "none"
        raise ValueError(f"{name} has no `blocks` of timm's Block; its attention is {attention}")
    for i, block in enumerate(blocks):
        plain = isinstance(block, Block) and type(block.attn) is Attention and type(block.mlp) is Mlp
        if not plain:
            parts = ", ".join(
                _path(m) for m in (block, *(getattr(block, n, None) for n in ("attn", "mlp"))) if m is not None
            )
            raise ValueError(f"block {i} of {name} is {parts}; needed are timm's Block, Attention and Mlp")
    if getattr(vit, "vpt", False) or hasattr(vit, "extra_layers"):
        raise ValueError(f"{name} has new layers of its own (vpt, vit_adapter) that would be frozen at their start")
    if not hasattr(getattr(vit, "patch_embed", None), "proj") or not hasattr(vit, "embed_dim"):
        raise ValueError(f"{name} has no patch_embed.proj or no embed_dim, which the methods read")


def _path(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__name__}"
