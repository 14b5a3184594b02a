"""Ways of using an adapted model that are easy to break: pickling, CLIP-like stems, resizing in steps, wrong words."""

import pickle

import pytest
import torch
from helpers import SAVANNA, adapted, images, randomise, tiny_vit
from torch import nn

import peftlib as pl
from peftlib.backbones.loading import resize_


def test_a_model_can_be_pickled():
    """Workers that are spawned get the model that way."""
    model, x = randomise(adapted(pl.Deflect(), SAVANNA)), images(SAVANNA)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


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


def test_resizing_starts_from_positions_that_were_trained_since():
    trained, fresh = tiny_vit(), tiny_vit()
    for v in (trained, fresh):
        resize_(v, 64)
    with torch.no_grad():
        trained.pos_embed.add_(1.0)
    resize_(trained, 32)
    resize_(fresh, 32)
    assert (trained.pos_embed - fresh.pos_embed).abs().min() > 0.5


def test_a_misspelt_word_for_weights_lists_the_words():
    with pytest.raises(FileNotFoundError, match=r"'randm'.*'default', 'random'"):
        pl.load_backbone("vit_tiny_patch16_224", weights="randm")
