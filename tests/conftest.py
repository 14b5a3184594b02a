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


COUNTED = pytest.StashKey()


@pytest.hookimpl(tryfirst=True)  # before slow ones are deselected
def pytest_collection_modifyitems(config, items):
    counts = config.stash.setdefault(COUNTED, {})
    for item in items:
        own = counts.setdefault(item.path, {"fast": 0, "slow": 0})
        own["slow" if item.get_closest_marker("slow") else "fast"] += 1


@pytest.fixture(scope="session")
def counted(request):
    """File -> how many cases it has: ``fast`` and ``slow``."""
    return request.config.stash[COUNTED]


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


@pytest.fixture(params=["tiny", pytest.param("dinov2_small", marks=pytest.mark.weights)])
def any_vit(request):
    """The tiny ViT, and DINOv2 at 28 px. Tests must not change it."""
    return tiny_vit() if request.param == "tiny" else request.getfixturevalue("small_dinov2")


@pytest.fixture(scope="session")
def small_dinov2():
    return pl.load_backbone("dinov2_small", image_size=28)


@pytest.fixture(scope="session")
def dinov2():
    """The real DINOv2 ViT-S/14 (fetched once through pip). Tests must not change it."""
    return pl.load_backbone("dinov2_small")
