"""What the notebooks look at: the numbers behind their figures must be right on cases with a known answer."""

import numpy as np
import pytest
import torch
from helpers import adapted, randomise
from hypothesis import given
from hypothesis import strategies as st

import peftlib as pl
from peftlib.deflect.analysis import (
    angle,
    block_outputs,
    displacement_table,
    embedding_parts,
    linear_cka,
    shuffle_pixels,
    trace,
)
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


def test_embedding_parts_are_those_of_the_model(x):
    model = randomise(adapted(pl.Deflect()))
    x_P, x_A = embedding_parts(model, x)
    seen = []
    handle = model.vit.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    tokens = model(x)
    handle.remove()
    z, z_A = seen
    assert torch.equal(z_A[:, 2:], x_A) and not z_A[:, :2].any()
    torch.testing.assert_close(z[:, 2:], x_P + x_A + model.vit.pos_embed[:, 2:])
    assert tokens.shape == (2, 18, 32)
    with pytest.raises(ValueError, match=r"RGB\(\) gives no x_A.*EMB"):
        embedding_parts(adapted(pl.LoRA()), x)


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
    torch.testing.assert_close(model.vit.norm(steps[-1].out), tokens)
    with pytest.raises(ValueError, match="no untangled block"):
        trace(adapted(pl.Frozen(), input=pl.EMB()), x)


def test_displacement_table(x):
    model = adapted(pl.Deflect())
    start = block_outputs(model, x)
    torch.testing.assert_close(model.vit.norm(start[-1]), model(x))
    before = displacement_table(trace(model, x), start)
    assert before["layer"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(before[["norm_ratio", "free_ratio", "cka"]], 1, atol=1e-5)
    np.testing.assert_allclose(before[["angle", "z_A"]], 0, atol=0.1)
    after = displacement_table(trace(randomise(model), x), start)
    np.testing.assert_allclose(after["norm_ratio"], 1, atol=1e-5)
    assert (after["angle"] > 1).all() and (after["z_A"] > 0.01).all() and (after["cka"] < 0.999).all()
    assert (after["free_ratio"] - 1).abs().max() > 0.1
