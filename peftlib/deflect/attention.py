"""uAtt, the untangled attention.

Notation: B batch, N tokens (patches plus prefix tokens), d width, h heads, r rank. z = z_P + z_A is the stream of
tokens, z_A the part that came from the bands beyond RGB.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peftlib.backbones.blocks import fused_qkv, layer_scaled, refuse_unplain_block, rotated
from peftlib.deflect.norm_constraint import constrain_norm
from peftlib.methods.base import zeroed


def auxiliary_after_norm(norm: nn.LayerNorm, z: Tensor, z_A: Tensor) -> Tensor:
    """n_A, the auxiliary part of LN(z): LayerNorm is affine once its scale sigma(z) is held fixed.

        LN(z) = n_P + n_A,   n_A = gamma * (z_A - mean(z_A)) / sigma(z)

    z, z_A: (B, N, d) -> (B, N, d).
    """
    sigma = (z.var(dim=-1, keepdim=True, unbiased=False) + norm.eps).sqrt()
    n_A = (z_A - z_A.mean(dim=-1, keepdim=True)) / sigma
    return n_A if norm.weight is None else n_A * norm.weight


class LowRank(nn.Module):
    """U V: (B, N, d) -> (B, N, 3d), one U for queries, keys and values; V starts at zero."""

    def __init__(self, dim: int, dim_out: int, rank: int):
        super().__init__()
        self.U = nn.Linear(dim, rank, bias=False)
        self.V = zeroed(nn.Linear(rank, dim_out, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.V(self.U(x))


class UntangledBlock(nn.Module):
    """A pretrained timm ``Block`` whose attention has matrices of its own for the auxiliary part.

        q = n_P W_Q + n_A (W_Q + U V_Q) = LN(z) W_Q + n_A U V_Q          (same for k and v)

    so one pretrained fused projection and one thin product give the untangled attention. With ``constrain``, the
    displacement keeps the length that the pretrained block would have given it.

    Where z_A is ``carried``, it moves by the part of the displacement D' = s D that the auxiliary values cause:

        v_A = n_A (W_V + U V_V),   D_A = s ls1(proj(softmax(q k^T) v_A)),   z_A' = z_A + D_A

    Attention is linear in its values, so D' - D_A is what the principal ones and proj's bias cause. That, and what the
    MLP adds, goes to z_P: z = z_P + z_A as before. Prefix tokens get a z_A too. Attention's dropout draws anew for D_A.

    ``block`` is timm's ``vision_transformer.Block`` or ``eva.EvaBlock``, frozen; for the options see ``Deflect``.
    """

    def __init__(
        self, block: nn.Module, rank: int, low_rank_principal: int = 0, constrain: bool = True,
        reference_grad: bool = True, carried: bool = False,
    ):  # fmt: skip
        super().__init__()
        refuse_unplain_block(block)
        if carried and not isinstance(block.attn.norm, nn.Identity):
            raise ValueError("stream='carried' splits what attention gives, and this one's is normalised (scale_norm)")
        weight = block.attn.proj.weight
        self.block = block
        self.constrain, self.reference_grad, self.carried = constrain, reference_grad, carried
        dim, dim_heads = weight.shape  # d, and that of all heads
        self.auxiliary = LowRank(dim, 3 * dim_heads, rank).to(weight)
        self.principal = LowRank(dim, 3 * dim_heads, low_rank_principal).to(weight) if low_rank_principal else None

    def forward(self, z: Tensor, z_A: Tensor, rope: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z, z_A: (B, N, d), rope: rotary positions, see ``rotation`` -> z and z_A behind the block."""
        block, (D, D_A) = self.block, self.displacement(z, z_A, rope)
        if D_A is None:
            z = z + block.drop_path1(D)
        else:
            D, D_A = block.drop_path1(torch.cat([D, D_A], dim=-1)).chunk(2, dim=-1)  # dropped together
            z, z_A = z + D, z_A + D_A
        return z + block.drop_path2(layer_scaled(block, 2, block.mlp(block.norm2(z)))), z_A

    def displacement(self, z: Tensor, z_A: Tensor, rope: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """D', how far and where to the attention moves each token, and D_A where z_A is carried: (B, N, d) each."""
        adapted, pretrained = self.qkv(z, z_A)
        D, s = self.attend(adapted, rope), z.new_ones(())
        if self.constrain:
            D_ref = self.attend(pretrained if self.reference_grad else pretrained.detach(), rope)
            D, s = constrain_norm(D, D_ref, self.reference_grad)
        if not self.carried:
            return D, None
        q, k, _ = adapted.chunk(3, dim=-1)
        v_A = self.auxiliary_values(z, z_A).to(q.dtype)
        return D, s * self.attend(torch.cat([q, k, v_A], dim=-1), rope, bias=False)

    def auxiliary_values(self, z: Tensor, z_A: Tensor) -> Tensor:
        """v_A: (B, N, d)."""
        n_A, attn = auxiliary_after_norm(self.block.norm1, z, z_A), self.block.attn
        W = attn.v_proj.weight if attn.qkv is None else attn.qkv.weight.chunk(3)[2]
        return F.linear(n_A.to(W.dtype), W) + F.linear(self.auxiliary.U(n_A), self.auxiliary.V.weight.chunk(3)[2])

    def formula(self, z: Tensor, z_A: Tensor) -> tuple[Tensor, Tensor]:
        """Queries, keys and values as the equation reads; ``qkv`` computes the same in fewer passes (a test)."""
        n_A = auxiliary_after_norm(self.block.norm1, z, z_A)
        n_P = self.block.norm1(z) - n_A
        pretrained = fused_qkv(self.block.attn, n_P + n_A)  # times W_Q, W_K and W_V side by side
        adapted = pretrained + self.auxiliary(n_A)
        if self.principal is not None:
            adapted = adapted + self.principal(n_P)
        return adapted, pretrained

    def attend(self, qkv: Tensor, rope: Tensor | None = None, bias: bool = True) -> Tensor:
        """ls1(proj(attention)) of fused queries, keys and values (B, N, 3d) -> (B, N, d); ``bias``: that of proj."""
        attn = self.block.attn
        q, k, v = split_heads(attn, qkv)
        q, k = rotated(attn, attn.q_norm(q), rope), rotated(attn, attn.k_norm(k), rope)
        if attn.fused_attn:
            x = F.scaled_dot_product_attention(q, k, v, dropout_p=attn.attn_drop.p if self.training else 0.0)
        else:
            x = attn.attn_drop((q * attn.scale @ k.transpose(-2, -1)).softmax(dim=-1)) @ v
        x = attn.norm(x.transpose(1, 2).flatten(2))
        return layer_scaled(self.block, 1, attn.proj_drop(attn.proj(x) if bias else F.linear(x, attn.proj.weight)))

    # --- the same, fast ---

    def qkv(self, z: Tensor, z_A: Tensor) -> tuple[Tensor, Tensor]:
        """Queries, keys and values (B, N, 3d), fused: with the new terms, and as pretrained on the same LN(z)."""
        n = self.block.norm1(z)
        pretrained = fused_qkv(self.block.attn, n)
        adapted = added(pretrained, self.auxiliary_code(z, z_A), self.auxiliary.V)
        if self.principal is not None:
            n_A = auxiliary_after_norm(self.block.norm1, z, z_A)
            adapted = adapted + self.principal(n - n_A)
        return adapted, pretrained

    def auxiliary_code(self, z: Tensor, z_A: Tensor) -> Tensor:
        """n_A U, (B, N, r), without n_A: what the norm does to z_A, but for the scale of each token, goes into U."""
        norm, U = self.block.norm1, self.auxiliary.U.weight  # (r, d)
        U = U if norm.weight is None else U * norm.weight
        U = U - U.mean(dim=-1, keepdim=True)  # taking z_A's mean away is taking U's away
        return F.linear(z_A, U) * inverse_deviation(z, norm.eps)


def added(y: Tensor, x: Tensor, layer: nn.Linear) -> Tensor:
    """y + layer(x) in one pass, in the type of y. y: (B, N, m), x: (B, N, r) -> (B, N, m)."""
    weight = layer.weight.to(y.dtype).T.contiguous()  # small; its gradient is then a product of the faster form
    return torch.addmm(y.flatten(0, 1), x.flatten(0, 1).to(y.dtype), weight).view_as(y)


def inverse_deviation(z: Tensor, eps: float) -> Tensor:
    """1 / sigma(z) of each token, with LayerNorm's own fast kernel: (B, N, d) -> (B, N, 1)."""
    return _InverseDeviation.apply(z, eps)


class _InverseDeviation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor, eps: float) -> Tensor:
        _, mean, inverse = torch.native_layer_norm(z, z.shape[-1:], None, None, eps)
        ctx.save_for_backward(z, mean, inverse)
        return inverse

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor) -> tuple[Tensor, None]:
        z, mean, inverse = ctx.saved_tensors
        steep = inverse.to(torch.promote_types(inverse.dtype, torch.float32)) ** 3  # float16 ends at 65504
        return ((z - mean) * (-g * steep / z.shape[-1])).to(z.dtype), None


def split_heads(attn: nn.Module, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fused (B, N, 3d) -> queries, keys and values, each (B, h, N, d / h)."""
    B, N, _ = qkv.shape
    q, k, v = qkv.view(B, N, 3, attn.num_heads, attn.head_dim).unbind(2)  # their gradients are then copied once
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
