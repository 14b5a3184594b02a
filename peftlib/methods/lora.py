"""LoRA: low-rank updates of linear layers (Hu et al., 2021)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peftlib.backbones.blocks import PARTS
from peftlib.methods.base import Method, choose_layers, option, zeroed

TARGETS = ("qkv", "proj", "fc1", "fc2")
QKV = ("q", "k", "v")
_PARENT = {"qkv": "attn", "proj": "attn", "fc1": "mlp", "fc2": "mlp"}


def target_layers(vit: VisionTransformer, layers: str | tuple[int, ...], targets: tuple[str, ...]):
    """Yield (parent module, attribute name) of every chosen linear layer, or of the layers that it consists of."""
    for i in choose_layers(layers, len(vit.blocks)):
        for target in targets:
            parent = getattr(vit.blocks[i], _PARENT[target], None)
            names = [n for n in (target, *PARTS.get(target, ())) if isinstance(getattr(parent, n, None), nn.Linear)]
            if not names:
                raise ValueError(f"block {i}, a {type(vit.blocks[i]).__name__}, has no linear layer {target!r}")
            yield from ((parent, name) for name in names)


class LowRankUpdate(nn.Module):
    """(alpha / r) B A drop(x), with B zero at the start. x: (..., d_in) -> (..., d_out)."""

    def __init__(self, dim_in: int, dim_out: int, rank: int, alpha: float, dropout: float):
        super().__init__()
        self.scale, self.dropout = alpha / rank, nn.Dropout(dropout)
        self.A = nn.Linear(dim_in, rank, bias=False)  # torch's own start is the one LoRA uses
        self.B = zeroed(nn.Linear(rank, dim_out, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.B(self.A(self.dropout(x.to(self.A.weight.dtype))))

    def weight(self) -> Tensor:
        """The update as a matrix: (d_out, d_in)."""
        return self.scale * self.B.weight @ self.A.weight


class LoRALinear(LowRankUpdate):
    """y = W x + b + (alpha / r) B A drop(x), with W and b frozen. x: (..., d_in) -> (..., d_out)."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, dropout: float = 0.0):
        super().__init__(linear.in_features, linear.out_features, rank, alpha, dropout)
        self.linear = linear
        self.to(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        W, b = self.linear.weight, self.linear.bias
        if W.requires_grad or (self.training and self.dropout.p > 0):
            return self.linear(x) + super().forward(x)  # as the equation reads; below the same in fewer passes
        device = x.device.type
        autocast = not x.is_meta and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else W.dtype
        taken = [t if t is None else t.to(dtype) for t in (x, W, b, self.A.weight, self.B.weight)]
        return LowRankSum.apply(*taken, self.scale).to(getattr(self.linear, "gives", dtype))

    def merged(self) -> nn.Linear:
        self.linear.weight += self.weight()
        return self.linear


class SplitLoRALinear(nn.Module):
    """A fused q, k, v layer in which each of the chosen ones has an A and a B of its own. (..., d) -> (..., 3 d)."""

    def __init__(self, linear: nn.Linear, parts: tuple[str, ...], rank: int, alpha: float, dropout: float = 0.0):
        super().__init__()
        self.linear = linear
        dim_in, dim_out = linear.in_features, linear.out_features // 3
        self.parts = nn.ModuleDict({part: LowRankUpdate(dim_in, dim_out, rank, alpha, dropout) for part in parts})
        self.to(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        rows = zip(QKV, self.linear(x).chunk(3, dim=-1), strict=True)
        return torch.cat([y + self.parts[part](x).to(y.dtype) if part in self.parts else y for part, y in rows], dim=-1)

    def merged(self) -> nn.Linear:
        for part, W in zip(QKV, self.linear.weight.chunk(3), strict=True):
            W += self.parts[part].weight() if part in self.parts else 0
        return self.linear


@dataclass(frozen=True)
class LoRA(Method):
    """Low-rank updates of linear layers in every chosen block.

    Attributes:
        rank: r of each update.
        alpha: the update is scaled by alpha / rank.
        dropout: of what enters an update, in training.
        targets: which linear layers: of ``qkv`` (one update of the fused layer), ``proj``, ``fc1``, ``fc2``; or, in
            place of ``qkv``, some of ``q``, ``k``, ``v``, each with an update of its own. Where a ViT (some of timm's
            Eva) has several layers in place of ``qkv`` or ``fc1``, each gets one.
        layers: ``"all"`` or block numbers.
    """

    name, label, paper = "lora", "LoRA", "Hu et al., 2021"
    learning_rates = (1.25e-4, 5e-4, 2e-3, 8e-3)
    tunes = r"vit\.blocks\.\d+\.(attn\.(qkv|([qkv]_)?proj)|mlp\.fc[12](_[gx])?)\.[AB]\.weight"

    rank: int = option(16, other=2, least=1)
    alpha: float = option(16.0, other=8.0, least=0.0)
    dropout: float = option(0.0, other=0.5, least=0.0, below=1.0)
    targets: tuple[str, ...] = option(TARGETS, other=("q", "v", "fc1"), some=TARGETS + QKV)
    layers: str | tuple[int, ...] = option("all", other=(0, -1))

    def inject(self, vit: VisionTransformer) -> None:
        options = (self.rank, self.alpha, self.dropout)
        whole = tuple(target for target in self.targets if target in TARGETS)
        for parent, target in target_layers(vit, self.layers, whole):
            setattr(parent, target, LoRALinear(getattr(parent, target), *options))
        parts = tuple(target for target in QKV if target in self.targets)
        for parent, target in target_layers(vit, self.layers, ("qkv",) if parts else ()):
            if target == "qkv":
                setattr(parent, target, SplitLoRALinear(getattr(parent, target), parts, *options))
            elif target[0] in parts:  # of q_proj, k_proj and v_proj
                setattr(parent, target, LoRALinear(getattr(parent, target), *options))


# --- the same, fast ---


class LowRankSum(torch.autograd.Function):
    """W x + b + s B A x for frozen W and b: what is low-rank is added in place, forward and backward.

    h = A x,   dh = s B^T dy,   dx = W^T dy + A^T dh,   dA = dh x^T,   dB = s dy h^T
    """

    @staticmethod
    def forward(ctx, x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, s: float) -> Tensor:
        h = F.linear(x, A)
        y = F.linear(x, W, b)
        y.view(-1, len(W)).addmm_(h.view(-1, len(A)), B.T, alpha=s)
        ctx.s, ctx.shape = s, x.shape
        ctx.save_for_backward(x, W, A, B, h)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple:
        x, W, A, B, h = ctx.saved_tensors
        x, dy, h = x.flatten(0, -2), dy.flatten(0, -2), h.flatten(0, -2)
        dh = dy @ (ctx.s * B)
        dx = (dy @ W).addmm_(dh, A).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return dx, None, None, dh.T @ x, ((ctx.s * h).T @ dy).T, None
