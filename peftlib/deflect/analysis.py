"""What the notebooks look at in an adapted model: what its blocks do to tokens, and how far these drift."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from peftlib.backbones.blocks import rotation
from peftlib.deflect.attention import UntangledBlock
from peftlib.deflect.norm_constraint import constrain_norm


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
            z, z_A = model.run_block(block, z, z_A)
            continue
        adapted, pretrained = block.qkv(z, z_A)
        D_free, D_ref = (block.attend(qkv, **rotation(model.vit, block)) for qkv in (adapted, pretrained))
        D = constrain_norm(D_free, D_ref)[0] if block.constrain else D_free
        traces.append(BlockTrace(layer, z, z_A, D, D_free, D_ref))
        z, z_A = model.run_block(block, z, z_A)
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
