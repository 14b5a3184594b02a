"""What a training step holds in memory."""

import pytest
import torch
from helpers import SENTINEL2, adapted, images, tiny_vit

import peftlib as pl
from peftlib.backbones.loading import load_backbone
from peftlib.model.costs import kept_bytes


def test_a_large_vit_with_deflect_fits_into_16_gib():
    """ViT-L at 224 px, 32 images, bfloat16: weights, what a step keeps, gradients and optimiser."""
    vit = load_backbone("scalemae_large", weights="random")
    model = pl.adapt(vit, pl.Deflect(), SENTINEL2, image_size=224, inplace=True)
    with torch.autocast("cpu", torch.bfloat16):
        one, two = (kept_bytes(model, images(SENTINEL2, batch=count, size=(224, 224))) for count in (1, 2))
    state = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    trained = sum(3 * p.nbytes for p in model.parameters() if p.requires_grad)  # gradient and AdamW's two moments
    total = state + trained + one + 31 * (two - one)
    assert 2 * 2**30 < total < 16 * 2**30


def test_checkpointing_keeps_less_and_changes_nothing(x):
    plain = adapted(pl.Deflect(), SENTINEL2)
    thrifty = pl.adapt(tiny_vit(), pl.Deflect(), SENTINEL2)
    thrifty.load_state_dict(plain.state_dict())
    thrifty.vit.set_grad_checkpointing()
    plain.train(), thrifty.train()
    assert kept_bytes(thrifty, x) < 0.6 * kept_bytes(plain, x)
    for model in (plain, thrifty):
        model(x).square().sum().backward()
    for (name, p), other in zip(plain.named_parameters(), thrifty.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, other.grad, msg=name)


@pytest.mark.parametrize("method", pl.METHODS.values(), ids=lambda method: method.name)
def test_frozen_weights_have_neither_gradient_nor_optimiser_state(method, x):
    model = adapted(method(), SENTINEL2).train()
    tuned = [p for p in model.parameters() if p.requires_grad]
    if not tuned:
        assert not model(x).requires_grad
        return
    optimizer = torch.optim.AdamW(tuned)
    model(x).square().sum().backward()
    optimizer.step()
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    assert set(optimizer.state) == set(tuned)


def test_the_pixel_network_keeps_nothing_of_the_pixels():
    """EMB: what is kept grows with patches, not with pixels."""
    model = adapted(pl.Deflect(layers=()), SENTINEL2, image_size=64)
    x = images(SENTINEL2, size=(64, 64))
    per_pixel = kept_bytes(model, x) / (4 * len(x) * 64 * 64)
    assert per_pixel < model.method.width  # a single map of its hidden features would be as much
