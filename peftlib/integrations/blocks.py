"""Methods on ViTs that read multispectral bands already, such as Prithvi: only what they do to the blocks."""

from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block
from torch import nn

from peftlib.methods import BitFit, Method, NormTuning
from peftlib.methods.houlsby import Houlsby
from peftlib.methods.lora import LoRA
from peftlib.methods.slr import SLR

# The others read x_A, know the layout of tokens (VPT, Earth-Adapter), or are what the framework does itself.
BLOCK_METHODS = {config.name: config for config in (NormTuning, BitFit, LoRA, SLR, Houlsby)}


def adapt_blocks(vit: nn.Module, method: Method) -> nn.Module:
    """Freeze a ViT and put a method into its blocks, in place: input, positions and forward stay the model's own.

    Args:
        vit: has ``blocks`` of timm's ``Block`` with its plain attention and MLP, ``patch_embed.proj``, ``embed_dim``.
        method: a config of ``BLOCK_METHODS``, such as ``LoRA(rank=8)``.

    Returns:
        ``vit`` itself; what requires a gradient is tuned. ``method.merge(vit)`` folds LoRA and SLR into its layers.

    Raises:
        ValueError: a method that needs more than blocks, or a model with other blocks; nothing is changed then.
    """
    if not isinstance(method, tuple(BLOCK_METHODS.values())):
        choices = ", ".join(f"{c.__name__}()" for c in BLOCK_METHODS.values())
        raise ValueError(f"method={method!r} does more than change blocks; choose one of {choices}")
    _refuse_unplain(vit)
    vit.requires_grad_(False)
    method.inject(vit)
    vit.peftlib_adapted = True
    return vit


def _refuse_unplain(vit: nn.Module) -> None:
    name = type(vit).__name__
    if getattr(vit, "peftlib_adapted", False):
        raise ValueError(f"this {name} was already adapted; build it again")
    blocks = getattr(vit, "blocks", None)
    if not isinstance(blocks, nn.ModuleList | nn.Sequential) or not len(blocks):
        attention = {_path(module) for module in vit.modules() if "Attention" in type(module).__name__}
        raise ValueError(f"{name} has no `blocks` of timm's Block; its attention is {', '.join(attention) or 'none'}")
    for i, block in enumerate(blocks):
        parts = [block, getattr(block, "attn", None), getattr(block, "mlp", None)]
        if not isinstance(block, Block) or [type(part) for part in parts[1:]] != [Attention, Mlp]:
            raise ValueError(f"block {i} of {name} is {[*map(_path, parts)]}; need timm's Block, Attention and Mlp")
    if getattr(vit, "vpt", False) or hasattr(vit, "extra_layers"):
        raise ValueError(f"{name} has new layers of its own (vpt, vit_adapter) that would be frozen at their start")
    if not hasattr(getattr(vit, "patch_embed", None), "proj") or not hasattr(vit, "embed_dim"):
        raise ValueError(f"{name} has no patch_embed.proj or no embed_dim, which the methods read")


def _path(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__name__}"
