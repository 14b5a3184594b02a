"""Deflection, the norm constraint: an adapted block may turn a token's displacement, not lengthen it."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def deflection(D: Tensor, D_ref: Tensor, eps: float = 1e-12) -> Tensor:
    """The direction of D with the length of D_ref, token by token: D' = D * ||D_ref|| / max(||D||, eps).

    The formula; ``constrain_norm`` computes the same faster and holds at zero and non-finite lengths.

    D, D_ref: (B, N, d) displacements of the adapted and of the pretrained block -> (B, N, d).
    """
    return D * D_ref.norm(dim=-1, keepdim=True) / D.norm(dim=-1, keepdim=True).clamp_min(eps)


def constrain_norm(D: Tensor, D_ref: Tensor, reference_grad: bool = True, eps: float = 1e-12) -> tuple[Tensor, Tensor]:
    """``deflection`` D' = s D, and s. The gradient runs through ||D_ref|| or, without ``reference_grad``, does not.

    A token keeps its D where that is shorter than eps (zero stays zero), or a length is not finite. One that the
    pretrained block does not move stays where it is. Gradients are finite at both zeros.

    D, D_ref: (B, N, d) -> (B, N, d), (B, N, 1).
    """
    return _Deflection.apply(D, D_ref if reference_grad else D_ref.detach(), eps)


class _Deflection(torch.autograd.Function):
    """Gradients written out: a fourth of the passes over (B, N, d) that autograd would make.

    For gradients g of D' and h of s, and c = (<g, D> + h) / ||D||,

        dD = (||D_ref|| / ||D||) (g - c D / ||D||),   dD_ref = c D_ref / ||D_ref||
    """

    @staticmethod
    def forward(ctx, D: Tensor, D_ref: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        precision = None if D.dtype == torch.float64 else torch.float32  # lengths in bfloat16 would miss by 1e-2
        length = torch.linalg.vector_norm(D, dim=-1, keepdim=True, dtype=precision)
        reference = torch.linalg.vector_norm(D_ref, dim=-1, keepdim=True, dtype=precision)
        scalable = (length > eps) & torch.isfinite(length) & torch.isfinite(reference)
        shrink = scalable / length.clamp_min(eps)  # 1 / ||D||, or 0 where D stays
        # a quotient, not a product with ``shrink``: equal lengths give exactly 1
        scale = torch.where(scalable, reference / length.clamp_min(eps), torch.ones_like(length))
        ctx.save_for_backward(D, D_ref, shrink, scale, 1 / reference.clamp_min(eps))
        return (D * scale).to(D.dtype), scale

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor | None, None]:
        D, D_ref, shrink, scale, grow = ctx.saved_tensors
        c = ((g.to(scale.dtype) * D).sum(-1, keepdim=True) + h) * shrink
        dD = torch.addcmul(g * scale, D.to(scale.dtype), -c * scale * shrink).to(D.dtype)
        return dD, (D_ref * (c * grow)).to(D.dtype) if ctx.needs_input_grad[1] else None, None
