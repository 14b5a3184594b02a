"""What this library and HF peft both have is the same: tokens and gradients, on the same weights."""

import peft
import pytest
import torch
from helpers import adapted, images, randomise
from torch import Tensor, nn

import peftlib as pl

pytestmark = pytest.mark.filterwarnings("ignore:Unsupported layer type")


def copy_(model: nn.Module, values: dict[str, Tensor]) -> nn.Module:
    """Set exactly the trainable parameters."""
    assert set(values) == {name for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, value in values.items():
            model.get_parameter(name).copy_(value)
    return model


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of a loss that makes them neither vanish beside 1e-5 nor drown it in rounding."""
    goal = torch.randn(2, 18, 32, generator=torch.Generator().manual_seed(3))
    loss = (model(images()) - goal).square().sum() / 100
    names = list(values(model))
    found = dict(zip(names, torch.autograd.grad(loss, [model.get_parameter(name) for name in names]), strict=True))
    assert all(0.01 < gradient.abs().max() < 10 for gradient in found.values())
    return found


def assert_equivalent(ours: nn.Module, theirs: nn.Module, renamed) -> None:
    """Tokens and gradients, with the same values; ``renamed``: our names to theirs."""
    copy_(theirs, {renamed(name): value for name, value in values(ours).items()})
    torch.testing.assert_close(ours(images()), theirs(images()), rtol=0, atol=1e-5)
    got, expected = {renamed(name): found for name, found in gradients(ours).items()}, gradients(theirs)
    assert got.keys() == expected.keys()
    for name in got:
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=1e-5, msg=lambda text, n=name: n + text)


def test_norm_tuning_equals_hf_ln_tuning():
    def renamed(name):
        path, part = name.rsplit(".", 1)
        return f"{path}.ln_tuning_layers.default.{part}"

    ours = randomise(adapted(pl.NormTuning()))
    assert_equivalent(ours, adapted(pl.HFPeft(peft.LNTuningConfig())), renamed)


def test_lora_equals_hf_lora():
    def renamed(name):
        return name.replace(".A.", ".lora_A.default.").replace(".B.", ".lora_B.default.")

    ours = randomise(adapted(pl.LoRA(rank=4, alpha=6.0)))
    assert_equivalent(ours, adapted(pl.HFPeft(peft.LoraConfig(r=4, lora_alpha=6))), renamed)


def test_lora_of_queries_and_values_equals_hf_lora_of_blocks():
    """On the fused layer: A_q above A_v, and B with B_q beside zeros in the rows of q, B_v in those of v."""
    r, d = 4, 32
    ours = randomise(adapted(pl.LoRA(rank=r, alpha=6.0, targets=("q", "v"))))
    theirs = adapted(pl.HFPeft(peft.LoraConfig(r=2 * r, lora_alpha=12, target_modules=["qkv"])))
    parts = [ours.vit.blocks[i].attn.qkv.parts for i in range(3)]
    weights = {}
    for i, part in enumerate(parts):
        B = torch.zeros(3 * d, 2 * r)
        B[:d, :r], B[2 * d :, r:] = part["q"].B.weight.detach(), part["v"].B.weight.detach()
        weights[f"vit.blocks.{i}.attn.qkv.lora_A.default.weight"] = torch.cat([part[k].A.weight for k in "qv"])
        weights[f"vit.blocks.{i}.attn.qkv.lora_B.default.weight"] = B
    copy_(theirs, weights)
    torch.testing.assert_close(ours(images()), theirs(images()), rtol=0, atol=1e-5)
