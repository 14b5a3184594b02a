"""What methods need of a ViT, whichever of timm's two classes it is: ``VisionTransformer`` or ``Eva``.

``Eva`` (DINOv3, EUPE, EVA-02, PE) turns queries and keys by the positions of their patches, keeps layer scales as
vectors and biases of q and v beside their product, and has, in some models, q, k and v as layers of their own.
"""

from typing import Any

import timm
import torch
from timm.layers import Attention, AttentionRope, PatchEmbed, apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

ATTENTIONS = (Attention, EvaAttention, AttentionRope)
PARTS = {"qkv": ("q_proj", "k_proj", "v_proj"), "fc1": ("fc1_g", "fc1_x")}  # a layer -> those that some have instead
_OTHERS = {  # timm's file -> why its models are refused
    "convnext": "which convolves, and has neither tokens nor attention",
    "hiera": "which pools its tokens from stage to stage, so that no grid of patches stays",
    "naflexvit": "whose patches come as a sequence with coordinates and masks, not as an image",
    "vision_transformer_sam": "which attends within windows of a map, by relative positions, without prefix tokens",
}


def refuse_other_vit(name: str, vit: nn.Module | None = None) -> None:
    """ValueError unless a model is a ``VisionTransformer`` or an ``Eva``, or one of timm's names may be."""
    made_by = timm.models.model_entrypoint(name) if vit is None else type(vit)
    file = made_by.__module__.rpartition(".")[2]
    if file in _OTHERS or not isinstance(vit, VisionTransformer | Eva | None):
        why = _OTHERS.get(file, f"a {made_by.__name__}")
        raise ValueError(f"peftlib adapts timm's VisionTransformer and Eva, not {name}, {why}")
    if vit is not None and not isinstance(vit.patch_drop, nn.Identity | None):
        raise ValueError("peftlib needs every patch token; build the ViT with patch_drop_rate=0")
    if vit is not None and not isinstance(vit.patch_embed, PatchEmbed):
        raise ValueError(f"peftlib needs timm's plain PatchEmbed, this ViT has a {type(vit.patch_embed).__name__}")


def call_layers(vit: nn.Module) -> None:
    """Have each attention call its ``qkv``: some of Eva's read its weight past what is wrapped around the layer."""
    for attn in vit.modules():
        if isinstance(attn, EvaAttention):
            attn.qkv_bias_separate = True


def refuse_unplain_block(block: nn.Module) -> None:
    """ValueError unless a block is timm's own: LayerNorm, attention with a key for each query, LayerNorm, MLP."""
    attn, norm = getattr(block, "attn", None), getattr(block, "norm1", None)
    plain = isinstance(block, Block | EvaBlock) and type(attn) in ATTENTIONS and isinstance(norm, nn.LayerNorm)
    if not plain or getattr(attn, "gate", None) is not None or getattr(attn, "num_kv_groups", 1) > 1:
        found = f"{type(block).__name__} with {type(attn).__name__} and {type(norm).__name__}"
        raise ValueError(f"untangled attention needs timm's block, LayerNorm, no gate or grouped keys; this is {found}")


def rotation(vit: nn.Module, block: nn.Module) -> dict[str, Any]:
    """What one of the ViT's blocks takes beside tokens: nothing, or ``rope``, sine and cosine of each patch's position.

    (n, 2 d / h), or (h, n, 2 d / h) where each block has learnt its own (``rope_mixed``).
    """
    if getattr(vit, "rope", None) is None:
        return {}
    rope = vit.rope.get_embed(shape=vit.patch_embed.grid_size)
    return {"rope": rope[[b is block for b in vit.blocks].index(True)] if vit.rope_mixed else rope}


def rotated(attn: nn.Module, x: Tensor, rope: Tensor | None) -> Tensor:
    """Queries or keys turned by the positions of their patches; prefix tokens have none. (B, h, N, d / h) -> same."""
    if rope is None:
        return x
    prefix, patches = x.tensor_split([attn.num_prefix_tokens], dim=2)
    return torch.cat([prefix, apply_rot_embed_cat(patches, rope, half=attn.rotate_half)], dim=2)


def fused_qkv(attn: nn.Module, x: Tensor) -> Tensor:
    """Queries, keys and values side by side, with their biases: (B, N, d) -> (B, N, 3d)."""
    if attn.qkv is None:
        return torch.cat([getattr(attn, name)(x) for name in PARTS["qkv"]], dim=-1)
    qkv, beside = attn.qkv(x), getattr(attn, "q_bias", None) is not None
    return qkv + torch.cat([attn.q_bias, attn.k_bias, attn.v_bias]).to(qkv.dtype) if beside else qkv


def layer_scaled(block: nn.Module, branch: int, x: Tensor) -> Tensor:
    """x times the layer scale of a block's branch 1 (attention) or 2 (MLP): a module, or a vector or None."""
    if isinstance(block, Block):
        return getattr(block, f"ls{branch}")(x)
    gamma = getattr(block, f"gamma_{branch}")
    return x if gamma is None else gamma * x
