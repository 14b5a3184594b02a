"""What the notebooks look at in an adapted model: attention products, displacements, drift."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftlib.deflect.attention import UntangledBlock, auxiliary_after_norm, split_heads
from peftlib.deflect.norm_constraint import constrain_norm

RGB, SPECTRAL = "RGB", "spectral"
PRODUCTS = tuple((query, key) for query in (RGB, SPECTRAL) for key in (RGB, SPECTRAL))


# --- attention products ----------------------------------------------------------------------------------------------


@torch.no_grad()
def attention_products(block: UntangledBlock, z: Tensor, z_A: Tensor) -> dict[tuple[str, str], Tensor]:
    """The four products that make up the attention logits, query part x key part.

        (n_P W_Q + n_A W_A,Q) (n_P W_K + n_A W_A,K)^T / sqrt(d_h)

    z, z_A: (B, N, d) entering the block -> {("RGB", "spectral"): (B, h, N, N), ...}; "RGB", "spectral" is an RGB query
    looking at spectral keys. They sum to the logits that the fused path uses.

    Raises:
        ValueError: queries or keys go through a norm of their own, so their product does not split.
    """
    attn = block.block.attn
    if not isinstance(attn.q_norm, torch.nn.Identity):
        raise ValueError("queries and keys are normalised in this ViT, so the attention product does not split in four")
    adapted, _ = block.qkv(z, z_A)
    n_A = auxiliary_after_norm(block.block.norm1, z, z_A)
    spectral = F.linear(n_A, attn.qkv.weight) + block.auxiliary(n_A)
    q, k = {}, {}
    for part, qkv in ((SPECTRAL, spectral), (RGB, adapted - spectral)):
        q[part], k[part], _ = split_heads(attn, qkv)
    return {(a, b): q[a] @ k[b].transpose(-2, -1) * attn.scale for a, b in PRODUCTS}


# --- displacements ---------------------------------------------------------------------------------------------------


class BlockTrace(NamedTuple):
    """What one adapted block did to the tokens. All tensors (B, N, d)."""

    layer: int  # block number
    z: Tensor  # tokens entering the block
    z_A: Tensor  # their auxiliary part
    D: Tensor  # displacement by the attention, as the model applies it
    D_free: Tensor  # the same before the norm constraint
    D_ref: Tensor  # what the pretrained block would have done to the same tokens


@torch.no_grad()
def trace(model: nn.Module, x: Tensor) -> list[BlockTrace]:
    """Follow images through the adapted blocks. x: (B, C, H, W) reflectance."""
    z, z_A = model.embed(x)
    traces = []
    for layer, block in enumerate(model.vit.blocks):
        if not isinstance(block, UntangledBlock) or z_A is None:
            z = model.run_block(block, z, z_A)
            continue
        adapted, pretrained = block.qkv(z, z_A)
        D_free, D_ref = block.attend(adapted), block.attend(pretrained)
        D = constrain_norm(D_free, D_ref) if block.constrain else D_free
        traces.append(BlockTrace(layer, z, z_A, D, D_free, D_ref))
        z = block(z, z_A)
    if not traces:
        raise ValueError("the model has no untangled block; use Deflect with at least one layer")
    return traces


def linear_cka(a: Tensor, b: Tensor) -> float:
    """Linear centred kernel alignment of two sets of features (Kornblith et al., 2019): 1 is the same up to rotation.

    a: (m, d_a), b: (m, d_b), rows the same samples.
    """
    a, b = (t.double() - t.double().mean(0) for t in (a, b))
    cross, own_a, own_b = (torch.linalg.matrix_norm(p.T @ q) for p, q in ((a, b), (a, a), (b, b)))
    return float(cross.square() / (own_a * own_b))
