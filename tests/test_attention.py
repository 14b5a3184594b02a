"""uAtt and deflection against the formulas written out, token by token."""

import math

import pytest
import torch
from helpers import SAVANNA, adapted, images, randomise, tiny_vit
from timm.layers import DropPath
from timm.models.vision_transformer import ParallelScalingBlock
from torch import Tensor, nn

import peftlib as pl
from peftlib.deflect.analysis import trace
from peftlib.deflect.attention import UntangledBlock, auxiliary_after_norm
from peftlib.deflect.norm_constraint import constrain_norm


def block(seed=0, rank=4, perturb=True, vit=None, **options) -> UntangledBlock:
    torch.manual_seed(seed)
    base = (vit or tiny_vit(seed)).blocks[1].requires_grad_(False)
    made = UntangledBlock(base, rank, **options)
    return randomise(made, 0.3).eval() if perturb else made.eval()


def tokens(dtype=torch.float32, batch=2, seed=0) -> tuple[Tensor, Tensor]:
    """z, and z_A that is zero at the first (prefix) token."""
    draw = torch.Generator().manual_seed(seed)
    z, z_A = (torch.randn(batch, 6, 32, generator=draw) for _ in range(2))
    z_A[:, 0] = 0
    return (z + 0.3).to(dtype), z_A.to(dtype)


# --- a slow reference, from the definition ---


def parts(norm: nn.LayerNorm, z: Tensor, z_A: Tensor) -> tuple[Tensor, Tensor]:
    """n_P and n_A: the norm at the scale of z, of z_P = z - z_A (with the shift) and of z_A. (B, N, d) each."""
    sigma = ((z - z.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True).add(norm.eps).sqrt()
    n_P, n_A = ((t - t.mean(-1, keepdim=True)) / sigma for t in (z - z_A, z_A))
    return (n_P, n_A) if norm.weight is None else (n_P * norm.weight + norm.bias, n_A * norm.weight)


def softmax_attention(qkv: Tensor, heads: int) -> Tensor:
    q, k, v = (t.unflatten(-1, (heads, -1)) for t in qkv.chunk(3, dim=-1))
    weights = torch.exp(torch.einsum("bihc,bjhc->bhij", q, k) / math.sqrt(q.shape[-1]))
    return torch.einsum("bhij,bjhc->bihc", weights / weights.sum(-1, keepdim=True), v).flatten(2)


def reference_block(m: UntangledBlock, z: Tensor, z_A: Tensor) -> tuple[Tensor, Tensor]:
    """Output of the block and its displacement: matrices W_A = W + U V for the auxiliary part."""
    base, attn = m.block, m.block.attn
    W, bias = attn.qkv.weight, attn.qkv.bias
    W_A = W + m.auxiliary.V.weight @ m.auxiliary.U.weight
    W_P = W if m.principal is None else W + m.principal.V.weight @ m.principal.U.weight
    n_P, n_A = parts(base.norm1, z, z_A)
    attended = (n_P @ W_P.T + n_A @ W_A.T + bias, (n_P + n_A) @ W.T + bias)
    D, D_ref = (base.ls1.gamma * attn.proj(softmax_attention(qkv, attn.num_heads)) for qkv in attended)
    if m.constrain:
        D = D * ((D_ref**2).sum(-1, keepdim=True) / (D**2).sum(-1, keepdim=True)).sqrt()
    return z + D + base.ls2(base.mlp(base.norm2(z + D))), D


@pytest.mark.parametrize("principal", [0, 3])
@pytest.mark.parametrize("constrain", [True, False])
def test_block_is_the_definition(principal, constrain):
    m = block(low_rank_principal=principal, constrain=constrain).double()
    z, z_A = tokens(torch.float64)
    with torch.no_grad():
        out, moved = reference_block(m, z, z_A)
        got, unmoved = m(z, z_A)
        torch.testing.assert_close(got, out, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(m.displacement(z, z_A)[0], moved, rtol=1e-10, atol=1e-10)
        assert unmoved is z_A and m.displacement(z, z_A)[1] is None
        assert not torch.allclose(block(perturb=False).double()(z, z_A)[0], out, atol=1e-2)  # U V have an effect


@pytest.mark.parametrize("principal", [0, 3])
def test_the_fast_queries_keys_and_values_are_those_of_the_formula(principal):
    m = block(low_rank_principal=principal)
    for fast, slow in zip(m.qkv(*tokens()), m.formula(*tokens()), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_splits_exactly(affine):
    norm = nn.LayerNorm(32, elementwise_affine=affine, dtype=torch.float64)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    z, z_A = tokens(torch.float64)
    n_P, n_A = parts(norm, z, z_A)
    torch.testing.assert_close(auxiliary_after_norm(norm, z, z_A), n_A, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(n_P + n_A, norm(z), rtol=1e-12, atol=1e-12)
    assert not n_A[:, 0].any()  # prefix tokens carry nothing


# --- z_A from block to block ---


@pytest.mark.parametrize("constrain", [True, False])
def test_a_carried_block_moves_z_A_by_what_auxiliary_values_cause(constrain):
    """D_A is attention to the values v_A, D - D_A that to v_P, with the bias; prefix tokens move too."""
    m = block(low_rank_principal=3, constrain=constrain, carried=True).double()
    (z, z_A), attn, gamma = tokens(torch.float64), m.block.attn, m.block.ls1.gamma
    with torch.no_grad():
        adapted, pretrained = m.formula(z, z_A)
        W_A = attn.qkv.weight + m.auxiliary.V.weight @ m.auxiliary.U.weight
        v_A = parts(m.block.norm1, z, z_A)[1] @ W_A[64:].T
        of_P, of_A = (
            softmax_attention(torch.cat([adapted[..., :64], v], dim=-1), 2) for v in (adapted[..., 64:] - v_A, v_A)
        )
        D_P, D_A = gamma * attn.proj(of_P), gamma * (of_A @ attn.proj.weight.T)
        s = m.attend(pretrained).norm(dim=-1, keepdim=True) / (D_P + D_A).norm(dim=-1, keepdim=True)
        D_P, D_A = (s * D_P, s * D_A) if constrain else (D_P, D_A)
        torch.testing.assert_close(m.displacement(z, z_A), (D_P + D_A, D_A))
        torch.testing.assert_close(m(z, z_A), (reference_block(m, z, z_A)[0], z_A + D_A))
        assert D_A[:, 0].abs().max() > 1e-2
        start = block(perturb=False, constrain=constrain, carried=True).double()
        torch.testing.assert_close(start(z, z_A)[0], start.block(z))


def test_a_dropped_branch_moves_neither_z_nor_z_A():
    m, (z, z_A) = block(carried=True).train(), tokens(batch=64)
    m.block.drop_path1 = DropPath(0.5)
    out, after = m(z, z_A)
    dropped = (after == z_A).flatten(1).all(1)
    alone = z + m.block.ls2(m.block.mlp(m.block.norm2(z)))  # the MLP's part
    assert 10 < dropped.sum() < 54 and torch.equal(torch.isclose(out, alone, atol=1e-5).flatten(1).all(1), dropped)


@pytest.mark.parametrize("layers", ["all", (0, 2)])
def test_z_A_is_handed_on_past_plain_blocks_and_four_products_are_the_logits(layers, x):
    model = randomise(adapted(pl.Deflect(stream="carried", layers=layers)))
    (z, z_A), steps = model.embed(x), {step.layer: step for step in trace(model, x)}
    for i, own in enumerate(model.vit.blocks):
        if i not in steps:
            z = own(z)  # a plain block leaves z_A
            continue
        step, attn = steps[i], own.block.attn
        assert torch.equal(step.z, z) and torch.equal(step.z_A, z_A)
        n_P, n_A = parts(own.block.norm1, z, z_A)
        W_A = attn.qkv.weight + own.auxiliary.V.weight @ own.auxiliary.U.weight
        of_P, of_A = n_P @ attn.qkv.weight.T + attn.qkv.bias, n_A @ W_A.T
        logits = sum(one[..., :32] @ two[..., 32:64].mT for one in (of_P, of_A) for two in (of_P, of_A))
        q, k, _ = own.qkv(z, z_A)[0].chunk(3, dim=-1)
        torch.testing.assert_close(logits, q @ k.mT, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(step.D.norm(dim=-1), step.D_ref.norm(dim=-1), rtol=1e-5, atol=0)
        z, z_A = own(z, z_A)
    assert torch.equal(model.vit.norm(z), model(x)) and not torch.equal(z_A, model.embed(x)[1])


# --- the norm constraint ---


@pytest.mark.parametrize(
    ("dtype", "autocast", "tolerance"),
    [(torch.float32, False, 1e-5), (torch.float32, True, 1e-2), (torch.bfloat16, False, 1e-2)],
)
def test_constraint_holds_at_every_token(dtype, autocast, tolerance):
    m = block().to(dtype)
    z, z_A = tokens(dtype, batch=8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        adapted_qkv, pretrained_qkv = m.qkv(z, z_A)
        free, reference = m.attend(adapted_qkv).float().norm(dim=-1), m.attend(pretrained_qkv).float().norm(dim=-1)
        got = m.displacement(z, z_A)[0].float().norm(dim=-1)
    assert ((free - reference) / reference).abs().max() > 0.1  # the constraint has something to do
    assert ((got - reference) / reference).abs().max() <= tolerance


def test_non_finite_lengths_give_no_nan_and_lengths_are_taken_in_float32():
    D, D_ref = 3 * torch.randn(64, 8, 256), torch.randn(64, 8, 256)
    D[0, 0] = 1e30  # its square overflows
    D_ref[0, 1] = float("inf")
    out, _ = constrain_norm(D, D_ref)
    assert not out.isnan().any() and torch.equal(out[0, 1], D[0, 1])  # nothing to scale to: the token keeps its own
    short, _ = constrain_norm(D[1:].bfloat16(), D_ref[1:].bfloat16())
    reference = D_ref[1:].bfloat16().float().norm(dim=-1)
    assert short.dtype == torch.bfloat16  # only its rounding is left, which averages out over the dimensions
    assert ((short.float().norm(dim=-1) - reference) / reference).abs().max() < 1e-3


def test_the_auxiliary_part_goes_through_norm_pre():
    """CLIP's ViTs normalise before the first block; z_A must stay the auxiliary part of z."""
    model = randomise(adapted(pl.Deflect(), SAVANNA, vit=tiny_vit(pre_norm=True)))
    x, norm = images(SAVANNA), model.vit.norm_pre
    assert isinstance(norm, nn.LayerNorm)
    z, z_A = model.embed(x)
    raw = model.vit._pos_embed(sum(model.embed_patches(x)))
    x_A = torch.cat([torch.zeros(2, 2, 32), model.auxiliary(model.reflectance, x)], dim=1)
    sigma = (raw.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    torch.testing.assert_close(z_A, norm.weight * (x_A - x_A.mean(-1, keepdim=True)) / sigma)
    torch.testing.assert_close(z, norm(raw))


# --- which blocks ---


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: adapted(pl.Deflect(), vit=tiny_vit(name="aimv2_large_patch14_224")), "RmsNorm"),
        (lambda: adapted(pl.Deflect(), vit=tiny_vit(name="eva02_enormous_patch14_clip_224")), "EvaBlockPostNorm"),
        (lambda: UntangledBlock(nn.TransformerEncoderLayer(32, 2), 4), "TransformerEncoderLayer"),
        (lambda: adapted(pl.Deflect(stream="carried"), vit=tiny_vit(scale_attn_norm=True)), "scale_norm"),
        (lambda: adapted(pl.LoRA(), vit=tiny_vit(block_fn=ParallelScalingBlock, reg_tokens=0)), "ParallelScalingBlock"),
    ],
)
def test_blocks_of_another_form_are_refused(made, says):
    with pytest.raises(ValueError, match=says):
        made()
