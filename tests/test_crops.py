"""Short trainings on crops of one labelled chip."""

import numpy as np
import pytest
import torch
from helpers import SAVANNA, adapted, images

import peftlib as pl
from peftlib.data import ChipCrops
from peftlib.studies.crops import crop_accuracy, train_on_crops


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Near-infrared decides the class in blocks of 16 px; red, green and blue say nothing."""
    image = images(SAVANNA, batch=1, size=(48, 112), seed=3)[0]
    blocks = torch.rand(3, 7, generator=torch.Generator().manual_seed(1)) > 0.5
    mask = blocks.repeat_interleave(16, 0).repeat_interleave(16, 1).long()
    image[3] = 0.1 + 0.4 * mask + 0.02 * image[3]
    return image, mask


def train(method, steps: int, seed: int = 0):
    image, mask = problem()
    model = adapted(method, SAVANNA)
    return model, *train_on_crops(model, image, mask, 2, steps, batch_size=4, lr=1e-2, head_lr=1e-2, seed=seed)


def test_training_learns_what_only_near_infrared_shows():
    scores = [
        crop_accuracy(*train(method, steps=60)[:2], *problem(), crops=16) for method in (pl.Deflect(), pl.Frozen())
    ]
    assert scores[0] > 0.8 and scores[0] > scores[1] + 0.15


def test_accuracy_is_the_share_of_right_pixels():
    image, mask = problem()
    model, decoder, _ = train(pl.Deflect(), steps=2)
    assert not model.training
    crops = ChipCrops(image, mask, 32, "test", 5, seed=2**16)
    right = [(decoder(model(c["image"][None])).argmax(1)[0] == c["mask"]).float().mean() for c in crops]
    assert crop_accuracy(model, decoder, image, mask, crops=5) == pytest.approx(float(sum(right) / 5), abs=1e-6)


def test_the_same_seed_gives_the_same_losses_and_another_seed_others():
    first, again, other = (train(pl.Deflect(), steps=4, seed=seed)[2] for seed in (0, 0, 1))
    assert len(first) == 4 and np.isfinite(first).all()
    assert first == again != other
