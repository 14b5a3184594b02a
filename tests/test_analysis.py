"""What the notebooks look at: the numbers behind their figures must be right on cases with a known answer."""

import pytest
import torch
from helpers import adapted, randomise

import peftlib as pl
from peftlib.deflect.analysis import linear_cka, trace
from peftlib.deflect.attention import UntangledBlock

# --- similarity ---


def test_cka_does_not_see_rotation_scale_and_shift():
    a = torch.randn(500, 6, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    assert linear_cka(a, 3.5 * a @ rotation + 2) == pytest.approx(1)
    b = a[:, :4] + torch.randn(500, 4, dtype=torch.float64)
    centred = torch.eye(500, dtype=torch.float64) - 1 / 500
    K, L = centred @ (a @ a.T) @ centred, centred @ (b @ b.T) @ centred  # the Gram form
    assert linear_cka(a, b) == pytest.approx(float((K * L).sum() / torch.sqrt((K * K).sum() * (L * L).sum())))
    assert linear_cka(a, torch.randn(500, 4, dtype=torch.float64)) < 0.1


# --- what blocks do ---


@pytest.mark.parametrize("constrain", [True, False])
@pytest.mark.parametrize("layers", ["all", (0, 2)])
def test_trace_follows_the_model(constrain, layers, x):
    model = randomise(adapted(pl.Deflect(constrain=constrain, layers=layers)))
    after_attention = {}
    for i, block in enumerate(model.vit.blocks):
        if isinstance(block, UntangledBlock):
            block.block.norm2.register_forward_pre_hook(lambda _, inputs, i=i: after_attention.setdefault(i, inputs[0]))
    model(x)
    steps = trace(model, x)
    assert [step.layer for step in steps] == ([0, 1, 2] if layers == "all" else [0, 2])
    for step in steps:
        torch.testing.assert_close(step.D, after_attention[step.layer] - step.z, rtol=1e-4, atol=1e-5)
        assert torch.equal(step.D, step.D_free) is not constrain
    with pytest.raises(ValueError, match="no untangled block"):
        trace(adapted(pl.Frozen(), input=pl.EMB()), x)
