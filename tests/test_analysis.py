"""What the notebooks look at: the numbers behind their figures must be right on cases with a known answer."""

import pytest
import torch
from helpers import adapted, randomise
from hypothesis import given
from hypothesis import strategies as st

import peftlib as pl
from peftlib.deflect.analysis import angle, block_outputs, linear_cka, shuffle_pixels, trace
from peftlib.deflect.attention import UntangledBlock


def pixels_of(patch: torch.Tensor) -> list:
    """The pixels of (C, p, p) as a sorted list of their band values: the multiset."""
    return sorted(patch.flatten(1).T.tolist())


# --- shuffling ---


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 5))
def test_shuffling_keeps_pixels_whole_and_inside_their_patch(patch, down, across, seed):
    x = torch.randn(2, 3, patch * down, patch * across)
    y = shuffle_pixels(x, patch, seed)
    for b in range(2):
        for i in range(down):
            for j in range(across):
                window = (slice(i * patch, (i + 1) * patch), slice(j * patch, (j + 1) * patch))
                assert pixels_of(y[b][:, *window]) == pixels_of(x[b][:, *window])
    assert torch.equal(y, shuffle_pixels(x, patch, seed)) and (patch < 4 or (y != x).float().mean() > 0.8)


# --- similarity and angles ---


def test_cka_does_not_see_rotation_scale_and_shift_and_angles_are_in_degrees():
    a = torch.randn(500, 6, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    assert linear_cka(a, 3.5 * a @ rotation + 2) == pytest.approx(1)
    b = a[:, :4] + torch.randn(500, 4, dtype=torch.float64)
    centred = torch.eye(500, dtype=torch.float64) - 1 / 500
    K, L = centred @ (a @ a.T) @ centred, centred @ (b @ b.T) @ centred  # the Gram form
    assert linear_cka(a, b) == pytest.approx(float((K * L).sum() / torch.sqrt((K * K).sum() * (L * L).sum())))
    assert linear_cka(a, torch.randn(500, 4, dtype=torch.float64)) < 0.1
    found = angle(torch.tensor([[1.0, 0.0]] * 4), torch.tensor([[5.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [1.0, 1.0]]))
    torch.testing.assert_close(found.float(), torch.tensor([0.0, 90.0, 180.0, 45.0]))


# --- what blocks do ---


@pytest.mark.parametrize("constrain", [True, False])
@pytest.mark.parametrize("layers", ["all", (0, 2)])
def test_trace_follows_the_model(constrain, layers, x):
    model = randomise(adapted(pl.Deflect(constrain=constrain, layers=layers)))
    after_attention = {}
    for i, block in enumerate(model.vit.blocks):
        if isinstance(block, UntangledBlock):
            block.block.norm2.register_forward_pre_hook(lambda _, inputs, i=i: after_attention.setdefault(i, inputs[0]))
    tokens = model(x)
    steps = trace(model, x)
    assert [step.layer for step in steps] == ([0, 1, 2] if layers == "all" else [0, 2])
    for step in steps:
        torch.testing.assert_close(step.D, after_attention[step.layer] - step.z, rtol=1e-4, atol=1e-5)
        assert torch.equal(step.D, step.D_free) is not constrain
    torch.testing.assert_close(model.vit.norm(block_outputs(model, x)[-1]), tokens)
    with pytest.raises(ValueError, match="no untangled block"):
        trace(adapted(pl.Frozen(), input=pl.EMB()), x)
