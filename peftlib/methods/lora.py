"""LoRA: low-rank updates of linear layers (Hu et al., 2021)."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peftlib.methods.base import InputMethod, at_least, choose_layers, choose_some

TARGETS = ("qkv", "proj", "fc1", "fc2")
_PARENT = {"qkv": "attn", "proj": "attn", "fc1": "mlp", "fc2": "mlp"}


def target_layers(vit: VisionTransformer, layers: str | tuple[int, ...], targets: tuple[str, ...]):
    """Yield (parent module, attribute name) of every chosen linear layer."""
    for i in choose_layers(layers, len(vit.blocks)):
        for target in targets:
            parent = getattr(vit.blocks[i], _PARENT[target], None)
            if not isinstance(getattr(parent, target, None), nn.Linear):
                raise ValueError(f"block {i}, a {type(vit.blocks[i]).__name__}, has no linear layer {target!r}")
            yield parent, target


class LoRALinear(nn.Module):
    """y = W x + b + (alpha / r) B A x, with W and b frozen and B zero at the start. x: (..., d_in) -> (..., d_out)."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.linear, self.scale = linear, alpha / rank
        self.A = nn.Linear(linear.in_features, rank, bias=False)  # torch's own start is the one LoRA uses
        self.B = nn.Linear(rank, linear.out_features, bias=False)
        nn.init.zeros_(self.B.weight)
        self.to(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.linear.weight, self.linear.bias) + self.scale * self.B(self.A(x))


@dataclass(frozen=True)
class LoRA(InputMethod):
    """Low-rank updates of linear layers in every chosen block.

    Attributes:
        rank: r of each update.
        alpha: the update is scaled by alpha / rank.
        targets: which linear layers: of ``qkv`` (fused), ``proj``, ``fc1``, ``fc2``.
        layers: ``"all"`` or block numbers.
        new_bands, train_patch_embed: see ``InputMethod``.
    """

    name: ClassVar[str] = "lora"
    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS
    layers: str | tuple[int, ...] = "all"

    def __post_init__(self):
        super().__post_init__()
        at_least(self, "rank", 1)
        at_least(self, "alpha", 0.0)
        choose_some(self, "targets", TARGETS)

    def inject_blocks(self, vit: VisionTransformer) -> None:
        for parent, target in target_layers(vit, self.layers, self.targets):
            setattr(parent, target, LoRALinear(getattr(parent, target), self.rank, self.alpha))
