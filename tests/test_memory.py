"""What a training step holds in memory."""

from collections.abc import Callable

import pytest
import torch
from helpers import SENTINEL2, adapted, images, tiny_vit

import peftlib as pl


def kept_bytes(model: pl.AdaptedViT, x: torch.Tensor, run: Callable | None = None) -> int:
    """Bytes that a forward pass keeps for the backward one, beside the model's own parameters and buffers."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), x)}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tokens = (run or model)(x)  # alive until all is counted: no address comes twice
    del tokens
    return sum(kept.values())


@pytest.mark.slow
def test_a_large_vit_with_deflect_fits_into_16_gib():
    """ViT-L at 224 px, 32 images, bfloat16: weights, what a step keeps, gradients and optimiser."""
    vit = pl.load_backbone("scalemae_large", weights="random")
    model = pl.adapt(vit, pl.Deflect(), SENTINEL2, image_size=224)
    with torch.autocast("cpu", torch.bfloat16):
        one, two = (kept_bytes(model, images(batch=count, size=(224, 224))) for count in (1, 2))
    state = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    trained = sum(3 * p.nbytes for p in model.parameters() if p.requires_grad)  # gradient and AdamW's two moments
    total = state + trained + one + 31 * (two - one)
    assert 2 * 2**30 < total < 16 * 2**30


def test_checkpointing_keeps_less_and_changes_nothing(x):
    plain, thrifty = adapted(pl.Deflect()).train(), adapted(pl.Deflect()).train()
    thrifty.vit.set_grad_checkpointing()
    pixels = kept_bytes(plain, x, plain.embed)  # before the blocks, which are what is checkpointed
    assert kept_bytes(thrifty, x) - pixels < 0.6 * (kept_bytes(plain, x) - pixels)
    for model in (plain, thrifty):
        model(x).square().sum().backward()
    for (name, p), other in zip(plain.named_parameters(), thrifty.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, other.grad, msg=name)


def test_the_pixel_network_keeps_nothing_of_the_pixels():
    """EMB: of pixels what it reads is kept, and nothing that it makes of them."""
    model = adapted(pl.Frozen(), input=pl.EMB(), vit=tiny_vit(img_size=64, patch_size=16), image_size=64)
    x = images(size=(64, 64))
    per_pixel = kept_bytes(model, x, model.embed) / (4 * len(x) * 64 * 64)
    assert per_pixel < model.input.width  # a single map of its hidden features would be as much
