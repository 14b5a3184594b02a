"""uAtt and deflection against the formulas written out, token by token."""

import math

import pytest
import torch
from helpers import SENTINEL2, adapted, randomise, tiny_vit
from timm.layers import RmsNorm
from timm.models.vision_transformer import Block, ParallelScalingBlock
from torch import Tensor, nn

import peftlib as pl
from peftlib.deflect.analysis import (
    PRODUCTS,
    attention_change,
    attention_maps,
    attention_products,
    product_shares,
    trace,
)
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


# --- a slow reference: loops over images, tokens and heads ---


def normalised_parts(norm: nn.LayerNorm, z: Tensor, z_A: Tensor) -> tuple[Tensor, Tensor]:
    """n_P and n_A of one token, (d,) each."""
    sigma = math.sqrt(float(((z - z.mean()) ** 2).mean()) + norm.eps)
    n = norm.weight * (z - z.mean()) / sigma + norm.bias
    n_A = norm.weight * (z_A - z_A.mean()) / sigma
    return n - n_A, n_A


def reference_attention(qkv: list[Tensor], heads: int) -> list[Tensor]:
    """Softmax attention over one image's tokens; qkv: a (3d,) vector a token."""
    d = len(qkv[0]) // 3
    size = d // heads
    result = []
    for i in range(len(qkv)):
        mixed = []
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            q = qkv[i][:d][part]
            weights = [torch.exp(q @ other[d : 2 * d][part] / math.sqrt(size)) for other in qkv]
            total = sum(weights)
            mixed.append(sum(w / total * other[2 * d :][part] for w, other in zip(weights, qkv, strict=True)))
        result.append(torch.cat(mixed))
    return result


def reference_block(m: UntangledBlock, z: Tensor, z_A: Tensor) -> tuple[Tensor, Tensor]:
    """Output of the block and its displacement, from the definition: W_A = W + U V for the auxiliary part."""
    base, attn = m.block, m.block.attn
    W, bias = attn.qkv.weight, attn.qkv.bias if attn.qkv.bias is not None else 0.0
    W_A = W + m.auxiliary.V.weight @ m.auxiliary.U.weight
    W_P = W if m.principal is None else W + m.principal.V.weight @ m.principal.U.weight
    out, moved = torch.empty_like(z), torch.empty_like(z)
    for b in range(len(z)):
        parts = [normalised_parts(base.norm1, t, a) for t, a in zip(z[b], z_A[b], strict=True)]
        adapted_attention = reference_attention([W_P @ p + W_A @ a + bias for p, a in parts], attn.num_heads)
        plain_attention = reference_attention([W @ (p + a) + bias for p, a in parts], attn.num_heads)
        for i, (new, old) in enumerate(zip(adapted_attention, plain_attention, strict=True)):
            D, D_ref = (base.ls1.gamma * (attn.proj.weight @ a + attn.proj.bias) for a in (new, old))
            if m.constrain:
                D = D * math.sqrt(float((D_ref**2).sum())) / math.sqrt(float((D**2).sum()))
            y = z[b, i] + D
            n2 = base.norm2.weight * (y - y.mean()) / torch.sqrt(((y - y.mean()) ** 2).mean() + base.norm2.eps)
            hidden = base.mlp.fc1.weight @ (n2 + base.norm2.bias) + base.mlp.fc1.bias
            hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
            out[b, i] = y + base.ls2.gamma * (base.mlp.fc2.weight @ hidden + base.mlp.fc2.bias)
            moved[b, i] = D
    return out, moved


@pytest.mark.parametrize("principal", [0, 3])
@pytest.mark.parametrize("constrain", [True, False])
def test_block_is_the_definition(principal, constrain):
    m = block(low_rank_principal=principal, constrain=constrain).double()
    z, z_A = tokens(torch.float64)
    with torch.no_grad():
        out, moved = reference_block(m, z, z_A)
        torch.testing.assert_close(m(z, z_A), out, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(m.displacement(z, z_A), moved, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(block(perturb=False).double()(z, z_A), out, atol=1e-2)  # U V have an effect


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
    n_A = auxiliary_after_norm(norm, z, z_A)
    # What LN would make of z_P = z - z_A at the scale of z.
    sigma = (z.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    z_P = z - z_A
    n_P = (z_P - z_P.mean(-1, keepdim=True)) / sigma
    n_P = n_P * norm.weight + norm.bias if affine else n_P
    torch.testing.assert_close(n_P + n_A, norm(z), rtol=1e-12, atol=1e-12)
    assert not n_A[:, 0].any()  # prefix tokens carry nothing


# --- the norm constraint ---


@pytest.mark.parametrize("reference_grad", [True, False])
@pytest.mark.parametrize(
    ("dtype", "autocast", "tolerance"),
    [(torch.float32, False, 1e-5), (torch.float32, True, 1e-2), (torch.bfloat16, False, 1e-2)],
)
def test_constraint_holds_at_every_token(dtype, autocast, tolerance, reference_grad):
    m = block(reference_grad=reference_grad).to(dtype)
    z, z_A = tokens(dtype, batch=8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        adapted_qkv, pretrained_qkv = m.qkv(z, z_A)
        free, reference = m.attend(adapted_qkv).float().norm(dim=-1), m.attend(pretrained_qkv).float().norm(dim=-1)
        got = m.displacement(z, z_A).float().norm(dim=-1)
    assert ((free - reference) / reference).abs().max() > 0.1  # the constraint has something to do
    assert ((got - reference) / reference).abs().max() <= tolerance


@pytest.mark.parametrize("layers", ["all", (1,)])
def test_constraint_holds_in_every_block_of_a_model(layers, x):
    model = randomise(adapted(pl.Deflect(layers=layers)))
    for step in trace(model, x):
        reference, length = step.D_ref.norm(dim=-1), step.D.norm(dim=-1)
        assert ((length - reference) / reference).abs().max() <= 1e-5
        assert ((step.D_free.norm(dim=-1) - reference) / reference).abs().max() > 1e-2


def test_zero_and_non_finite_lengths_give_no_nan():
    D, D_ref = torch.randn(2, 3, 5, 4).unbind(0)
    D[0, 0] = 0
    D_ref[0, 1] = 0
    D[0, 2] = D_ref[0, 2] = 0
    out = constrain_norm(D, D_ref)
    assert torch.isfinite(out).all() and not out[0, :3].any()
    huge = D.clone()
    huge[1, 0] = 1e30  # its square overflows
    reference = D_ref.clone()
    reference[1, 1] = float("inf")
    out = constrain_norm(huge, reference)
    assert not torch.isnan(out).any()
    assert torch.equal(out[1, 1], huge[1, 1])  # nothing sensible to scale to: the token keeps its own
    torch.testing.assert_close(out[2], constrain_norm(D, D_ref)[2])


def test_lengths_are_taken_in_float32():
    """In bfloat16 only the rounding of the result is left, which averages out over the dimensions."""
    D, D_ref = (torch.randn(64, 8, 256) * s for s in (3.0, 1.0))
    out = constrain_norm(D.bfloat16(), D_ref.bfloat16())
    reference = D_ref.bfloat16().float().norm(dim=-1)
    assert out.dtype == torch.bfloat16
    assert ((out.float().norm(dim=-1) - reference) / reference).abs().max() < 1e-3


def test_reference_grad_changes_gradients_alone():
    z, z_A = tokens()
    outputs, gradients = [], []
    for flag in (True, False):
        m = block(reference_grad=flag)
        inputs = z.clone().requires_grad_()
        out = m.displacement(inputs, z_A)
        out.square().sum().backward()  # = the sum of squared reference lengths
        outputs.append(out.detach())
        gradients.append(inputs.grad)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)
    assert gradients[0].abs().max() > 1e-2 and gradients[1].abs().max() < 1e-4


def test_dropout_is_off_in_eval_mode(x):
    """A backbone in eval mode stays the pretrained model, whatever dropout it was built with."""
    dropping = tiny_vit(attn_drop_rate=0.5, proj_drop_rate=0.5, drop_path_rate=0.5)
    model = adapted(pl.Deflect(), vit=dropping)
    plain = adapted(pl.Frozen(), vit=tiny_vit())
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=1e-6)


# --- the four products ---


@pytest.mark.parametrize("principal", [0, 3])
def test_four_products_sum_to_the_logits_of_the_fused_path(principal, monkeypatch):
    m = block(low_rank_principal=principal, constrain=False)
    z, z_A = tokens()
    products = attention_products(m, z, z_A)
    assert set(products) == set(PRODUCTS) and all(p.abs().max() > 0.05 for p in products.values())
    seen = []

    def spy(q, k, v, **_):
        seen.append(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]))
        return v

    monkeypatch.setattr("peftlib.deflect.attention.F.scaled_dot_product_attention", spy)
    m(z, z_A)
    torch.testing.assert_close(sum(products.values()), seen[0], rtol=0, atol=1e-5)


def test_products_are_those_of_the_parts():
    m = block().double()
    z, z_A = tokens(torch.float64)
    products = attention_products(m, z, z_A)
    W, bias, d = m.block.attn.qkv.weight, m.block.attn.qkv.bias, 32
    W_A = W + m.auxiliary.V.weight @ m.auxiliary.U.weight
    for query, key in ((1, 4), (3, 0)):
        (q_P, q_A), (k_P, k_A) = (normalised_parts(m.block.norm1, z[0, i], z_A[0, i]) for i in (query, key))
        zero_bias = torch.zeros(3 * d, dtype=torch.float64) if bias is None else bias
        q = {"RGB": (W @ q_P + zero_bias)[:16], "spectral": (W_A @ q_A)[:16]}
        k = {"RGB": (W @ k_P + zero_bias)[d : d + 16], "spectral": (W_A @ k_A)[d : d + 16]}
        for a, b in PRODUCTS:
            torch.testing.assert_close(products[a, b][0, 0, query, key], q[a] @ k[b] / 4, rtol=1e-9, atol=1e-9)


def test_shares_sum_to_one_and_ignore_what_softmax_ignores():
    products = attention_products(block(), *tokens())
    shares = product_shares(products)
    assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) > 0
    shifted = {pair: logits + torch.randn(2, 2, 6, 1) * 5 for pair, logits in products.items()}
    assert product_shares(shifted) == pytest.approx(shares, rel=1e-3)
    nothing = {pair: torch.zeros_like(logits) for pair, logits in products.items()}
    assert set(product_shares(nothing).values()) == {0.0}


def test_maps_are_those_of_both_attentions():
    m = block()
    z, z_A = tokens()
    adapted_map, pretrained_map = attention_maps(m, z, z_A)
    attn, caught = m.block.attn, []
    attn.fused_attn = False  # timm's own, written out
    attn.attn_drop.register_forward_hook(lambda *call: caught.append(call[2]))
    attn(m.block.norm1(z))
    torch.testing.assert_close(pretrained_map, caught[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(adapted_map, sum(attention_products(m, z, z_A).values()).softmax(-1))
    assert not torch.allclose(adapted_map, pretrained_map, atol=1e-2)


def test_attention_change_is_total_variation():
    same, other = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.25, 0.75]]]])
    assert attention_change(same, other).tolist() == [0.75]
    assert attention_change(same, same).tolist() == [0.0]


# --- which blocks ---


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: ParallelScalingBlock(32, 2), "ParallelScalingBlock"),
        (lambda: Block(32, 2, norm_layer=RmsNorm), "RmsNorm"),
        (lambda: nn.TransformerEncoderLayer(32, 2), "TransformerEncoderLayer"),
    ],
)
def test_blocks_of_another_form_are_refused(made, says):
    with pytest.raises(ValueError, match=says):
        UntangledBlock(made(), 4)


def test_a_vit_of_other_blocks_is_refused_by_adapt():
    with pytest.raises(ValueError, match="ParallelScalingBlock"):
        pl.adapt(tiny_vit(block_fn=ParallelScalingBlock, reg_tokens=0), pl.Deflect(), SENTINEL2)


@pytest.mark.parametrize("options", [dict(qk_norm=True), dict(qk_norm=True, scale_attn_norm=True)])
def test_normalised_queries_work_but_do_not_split(options, x):
    vit = tiny_vit(**options)
    torch.testing.assert_close(adapted(pl.Deflect(), vit=vit)(x), adapted(pl.Frozen(), vit=vit)(x), rtol=0, atol=1e-6)
    m = randomise(UntangledBlock(vit.blocks[0], 4))
    with pytest.raises(ValueError, match="does not split"):
        attention_products(m, *tokens())
    adapted_map, _ = attention_maps(m, *tokens())
    torch.testing.assert_close(adapted_map.sum(-1), torch.ones(2, 2, 6))
