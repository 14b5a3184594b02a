"""Gradients that are written out equal those that autograd finds, and low precision keeps small updates."""

import pytest
import torch
from helpers import randomise
from torch import nn

from peftlib.deflect.norm_constraint import constrain_norm, deflection
from peftlib.methods.lora import LoRALinear, LowRankSum, LowRankUpdate


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("bias", [True, False])
def test_a_low_rank_sum_has_the_gradients_of_the_formula(bias):
    x, A, B = drawn(2, 3, 5), drawn(2, 5, seed=1), drawn(4, 2, seed=2)
    W, b = drawn(4, 5, seed=3).detach(), drawn(4, seed=4).detach() if bias else None
    out = LowRankSum.apply(x, W, b, A, B, 0.7)
    torch.testing.assert_close(out, nn.functional.linear(x, W, b) + 0.7 * x @ A.T @ B.T)
    torch.autograd.gradcheck(lambda *inputs: LowRankSum.apply(inputs[0], W, b, *inputs[1:], 0.7), (x, A, B))


@pytest.mark.parametrize("why", ["float32", "bfloat16", "autocast", "dropout", "unfrozen"])
def test_both_ways_of_lora_agree_and_each_is_taken_where_it_should(why, monkeypatch):
    layer = randomise(LoRALinear(nn.Linear(6, 4).requires_grad_(why == "unfrozen"), 2, 3.0, 0.5 * (why == "dropout")))
    x, calls = torch.randn(3, 6), []
    layer, x = (layer.bfloat16(), x.bfloat16()) if why == "bfloat16" else (layer, x)
    monkeypatch.setattr(LowRankUpdate, "forward", lambda self, x: calls.append(1) or self.scale * self.B(self.A(x)))
    with torch.autocast("cpu", torch.bfloat16, enabled=why == "autocast"):
        out = layer(x)
        formula = layer.linear(x) + 1.5 * layer.B(layer.A(x))
    reduced = dict(rtol=2**-7, atol=2**-7)  # one rounding more or less
    torch.testing.assert_close(out, formula, **reduced if why in ("bfloat16", "autocast") else {})
    assert bool(calls) is (why in ("dropout", "unfrozen"))
    out.sum().backward()
    assert layer.B.weight.grad.any() and (layer.linear.weight.grad is not None) is (why == "unfrozen")


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_updates_too_small_for_bfloat16_are_not_rounded_away(how):
    layer = LoRALinear(nn.Linear(64, 64), 4, 4.0).requires_grad_(False)
    for tensor in layer.linear.parameters():
        tensor.zero_()  # so that the update is all there is
    layer.B.weight.normal_(std=1e-4)
    x = torch.randn(32, 64)
    change = layer(x)
    y = x if how == "autocast" else x.bfloat16()
    layer = layer if how == "autocast" else layer.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        torch.testing.assert_close(layer(y).float(), change, rtol=0.1, atol=1e-5)


def test_deflection_is_its_formula_with_its_gradients():
    D, D_ref = drawn(2, 3, 5), drawn(2, 3, 5, seed=1)
    D_new, s = constrain_norm(D, D_ref)
    torch.testing.assert_close(D_new, deflection(D, D_ref), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(s * D, D_new, rtol=1e-12, atol=1e-12)
    short, reference = D.detach().float(), D_ref.detach().float()
    torch.testing.assert_close(constrain_norm(short, reference)[0], deflection(short, reference), rtol=1e-6, atol=1e-6)
    fast, slow = (torch.autograd.grad(out.square().sum(), (D, D_ref)) for out in (D_new, deflection(D, D_ref)))
    torch.testing.assert_close(fast, slow)
    torch.autograd.gradcheck(constrain_norm, (D, D_ref))  # of both outputs
    torch.autograd.gradcheck(lambda D: constrain_norm(D, D_ref, reference_grad=False), (D,))
