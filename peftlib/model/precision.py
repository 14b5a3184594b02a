"""bfloat16 for what is frozen: the backbone's linear layers, stored once, in half the memory.

What is trained stays in float32, as do the norms, the stream of tokens between blocks, EMB and the head.
"""

import re

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peftlib.backbones.blocks import ATTENTIONS

FLOAT32, BF16_FROZEN = "float32", "bf16-frozen"
PRECISIONS = (FLOAT32, BF16_FROZEN)


class RoundedLinear(nn.Linear):
    """y = W x + b in bfloat16, which a frozen W is stored in. x: (..., d_in) -> (..., d_out) of type ``gives``."""

    def __init__(self, linear: nn.Linear, gives: torch.dtype):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        W = linear.weight
        self.weight = W if W.requires_grad else nn.Parameter(W.detach().bfloat16(), requires_grad=False)
        self.bias = linear.bias  # small, and BitFit trains it
        self.gives = gives

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.bfloat16()
        return F.linear(x.bfloat16(), self.weight.bfloat16(), bias).to(self.gives)


def round_frozen(vit: VisionTransformer, linears: set[nn.Linear]) -> None:
    """Make linear layers multiply in bfloat16, in place, and store frozen weights in it. ValueError: none is frozen."""
    found = [(name, layer) for name, layer in vit.named_modules() if layer in linears]
    if all(layer.weight.requires_grad for _, layer in found):
        raise ValueError(f"precision={BF16_FROZEN!r} rounds frozen linear layers, and this method trains them all")
    for name, layer in found:
        leaves = re.search(r"\.(proj|fc2)(\.|$)", name)  # for the stream of tokens, which stays in float32
        vit.set_submodule(name, RoundedLinear(layer, torch.float32 if leaves else torch.bfloat16))
    choose_attention(vit)


def choose_attention(vit: VisionTransformer) -> None:
    """On a CPU, attention in bfloat16 is written out: fused, its backward pass takes six times as long."""
    for attention in vit.modules():
        if isinstance(attention, ATTENTIONS):
            attention.fused_attn = next(attention.parameters()).is_cuda  # type: ignore[misc]  # Final for TorchScript
