"""timm's class Eva (DINOv3, EVA-02, PE): every input and method keeps its promises, rotary positions leave uAtt's."""

import peft
import pytest
import test_registry as registry
import torch
import torch.nn.functional as F
from helpers import EVAS, SAVANNA, adapted, images, randomise, tiny_vit
from test_attention import parts
from test_merge import assert_merges
from test_registry import make

import peftlib as pl
from peftlib.backbones.blocks import fused_qkv, rotation
from peftlib.deflect.analysis import trace
from peftlib.deflect.attention import split_heads

EVERY = pytest.mark.parametrize("name", EVAS)


@EVERY
@registry.PAIRWISE
def test_the_walk_of_the_registry(input, method, name, tmp_path):
    vit = tiny_vit(name=name)
    model = make(input, method, vit=vit)
    registry.assert_starts_as_pretrained(model, vit, 2e-6)
    assert {part: set(named) for part, named in model.tuned_parts().items()} == registry.parts_by_pattern(model)
    registry.assert_frozen_stay(model, steps=3)
    wide = randomise(make(input, method, vit=vit, image_size=(40, 24)))
    registry.assert_file_brings_it_back(wide, vit, tmp_path / "adapter.safetensors")
    if method.name != "full":
        both = (make(input, method, vit=vit, precision=precision) for precision in ("float32", "bf16-frozen"))
        tokens, rounded = (randomise(one, 0.05).eval()(registry.look(one)) for one in both)
        assert 0 < (rounded - tokens).norm() < 0.02 * tokens.norm()


@pytest.mark.parametrize(
    ("name", "method"), [(EVAS[1], pl.VPT(deep=False)), (EVAS[3], pl.LoRA()), (EVAS[5], pl.Deflect())]
)
def test_it_compiles_checkpoints_and_is_counted_without_weights(name, method, x):
    vit = tiny_vit(name=name, depth=2)
    model = randomise(adapted(method, vit=vit, nodata="zero"))
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, model(x), rtol=1e-4, atol=1e-4)
    model.vit.set_grad_checkpointing()
    torch.testing.assert_close(compiled, model(x), rtol=1e-4, atol=1e-4)
    assert pl.cost_table(vit, SAVANNA, methods=[method])["step_gflops"].item() > 0


@EVERY
def test_what_is_wrapped_around_a_layer_is_called_and_merged(name):
    """Also around ``qkv`` where timm reads its weight and does not call it."""
    vit, x = tiny_vit(name=name), images().double()
    for method in (pl.LoRA(targets=("q", "v")), pl.SLR(), pl.HFPeft(peft.LoraConfig(r=4))):
        merged = assert_merges(randomise(adapted(method, vit=vit)).double(), x)
        assert list(merged.state_dict()) == list(vit.state_dict())


def turned(x: torch.Tensor, rope: torch.Tensor, half: bool) -> torch.Tensor:
    """Patch by patch, each pair of dimensions turned as a complex number. x: (B, h, n, c), rope: (..., n, 2 c)."""
    pair = (lambda t: t.chunk(2, dim=-1)) if half else (lambda t: (t[..., 0::2], t[..., 1::2]))
    sin, cos = (pair(t)[0] for t in rope.chunk(2, dim=-1))
    z = torch.complex(*pair(x)) * torch.complex(cos, sin)
    return torch.cat([z.real, z.imag], dim=-1) if half else torch.view_as_real(z).flatten(-2)


@EVERY
def test_four_products_sum_to_the_logits_and_the_constraint_holds(name, x, monkeypatch):
    model = randomise(adapted(pl.Deflect(), vit=tiny_vit(name=name))).double()
    used, real = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **o: used.append(q @ k.mT) or real(q, k, v))
    prefix, steps = model.vit.num_prefix_tokens, trace(model, x.double())
    assert [step.layer for step in steps] == [0, 1, 2]
    for i, step in enumerate(steps):
        m = model.vit.blocks[i]
        attn, rope = m.block.attn, rotation(model.vit, m)["rope"].double()
        n_P, n_A = parts(m.block.norm1, step.z, step.z_A)
        from_P, from_A = fused_qkv(attn, n_P), fused_qkv(attn, n_A) - fused_qkv(attn, 0 * n_A) + m.auxiliary(n_A)
        q_P, k_P, _, q_A, k_A, _ = (
            torch.cat([t[:, :, :prefix], turned(t[:, :, prefix:], rope, attn.rotate_half)], dim=2)
            for t in (*split_heads(attn, from_P), *split_heads(attn, from_A))
        )
        products = [q @ k.mT for q in (q_P, q_A) for k in (k_P, k_A)]
        torch.testing.assert_close(sum(products), used[4 * i], rtol=1e-6, atol=1e-6)
        assert min(product.std() for product in products) > 1e-2  # each has a share in it
        pretrained, free, kept = (D.norm(dim=-1) for D in (step.D_ref, step.D_free, step.D))
        torch.testing.assert_close(kept, pretrained, rtol=1e-9, atol=0)
        assert ((free - pretrained) / pretrained).abs().max() > 0.01
