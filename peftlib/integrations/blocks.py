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
    name, blocks = type(vit).__name__, list(getattr(vit, "blocks", []))
    if getattr(vit, "peftlib_adapted", False):
        raise ValueError(f"this {name} was already adapted; build it again")
    plain = [isinstance(b, Block) and type(b.attn) is Attention and type(b.mlp) is Mlp for b in blocks]
    if not plain or not all(plain):
        kinds = {f"{type(m).__module__}.{type(m).__name__}" for m in vit.modules() if "Attention" in type(m).__name__}
        need = f"needs `blocks` of timm's Block with its Attention and Mlp; its attention is {sorted(kinds)}"
        raise ValueError(f"{name} {need}")
    if getattr(vit, "vpt", False) or hasattr(vit, "extra_layers"):
        raise ValueError(f"{name} has new layers of its own (vpt, vit_adapter) that would be frozen at their start")
