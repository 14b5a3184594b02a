"""SLR: scaled low-rank updates of linear layers (Scheibenreif, Mommert, Borth, CVPR 2024)."""

from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peftlib.methods.base import Method, option, unfreeze, zeroed
from peftlib.methods.lora import TARGETS, target_layers


class SLRLinear(nn.Module):
    """y = s_out * (W (s_in * x) + b + U D (s_in * x)), with W and b frozen, s_in and s_out one and U zero at the start.

    x: (..., d_in) -> (..., d_out).
    """

    def __init__(self, linear: nn.Linear, rank: int, scalers: bool):
        super().__init__()
        self.linear = linear
        self.D = nn.Linear(linear.in_features, rank, bias=False)
        self.U = zeroed(nn.Linear(rank, linear.out_features, bias=False))
        ones = torch.ones(linear.in_features), torch.ones(linear.out_features)
        self.s_in, self.s_out = (nn.Parameter(one, requires_grad=scalers) for one in ones)
        self.to(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.s_in * x
        return self.s_out * (self.linear(x) + self.U(self.D(x)))

    def merged(self) -> nn.Linear:
        W, b = self.linear.weight, self.linear.bias
        W.copy_(self.s_out[:, None] * (W + self.U.weight @ self.D.weight) * self.s_in)
        if b is not None:
            b.mul_(self.s_out)
        return self.linear


@dataclass(frozen=True)
class SLR(Method):
    """Low-rank updates with learnt scalers of the inputs and outputs of each linear layer.

    Attributes:
        rank: r of each update; scalers: whether s_in and s_out are trained.
        train_norms: whether LayerNorms are trained too, as in the authors' code (their table does not count them).
        targets: which linear layers: of ``qkv`` (fused), ``proj``, ``fc1``, ``fc2``.
        layers: ``"all"`` or block numbers.
    """

    name, label = "slr", "SLR"
    learning_rates = (1.25e-4, 5e-4, 2e-3, 8e-3)
    tunes = r"vit\.blocks\.\d+\.(attn\.(qkv|([qkv]_)?proj)|mlp\.fc[12](_[gx])?)\.([DU]\.weight|s_(in|out))"

    rank: int = option(16, other=2, least=1)
    scalers: bool = option(True, other=False, choices=(True, False))
    train_norms: bool = option(False, other=True, choices=(True, False))
    targets: tuple[str, ...] = option(TARGETS, other=("qkv",), some=TARGETS)
    layers: str | tuple[int, ...] = option("all", other=(0, -1))

    def inject(self, vit: VisionTransformer) -> None:
        for parent, target in target_layers(vit, self.layers, self.targets):
            setattr(parent, target, SLRLinear(getattr(parent, target), self.rank, self.scalers))
        if self.train_norms:
            unfreeze(vit, "norm")
