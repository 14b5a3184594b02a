"""Short trainings on crops of one chip, and the chip that needs no download."""

import pytest
import torch
from helpers import SAVANNA, adapted, images

import peftlib as pl
from peftlib.data import ChipCrops, savanna_chip, savanna_classes
from peftlib.studies.crops import train_on_crops


def problem(size=(48, 112)) -> tuple[torch.Tensor, torch.Tensor]:
    """Near infrared decides the class in blocks of 16 px; red, green and blue say nothing."""
    image = images(SAVANNA, batch=1, size=size, seed=3)[0]
    blocks = torch.rand(size[0] // 16, size[1] // 16, generator=torch.Generator().manual_seed(1)) > 0.5
    mask = blocks.repeat_interleave(16, 0).repeat_interleave(16, 1).long()
    image[3] = 0.1 + 0.4 * mask + 0.02 * image[3]
    return image, mask


def train(steps=12, seed=0, method=None):
    image, mask = problem()
    model = adapted(method or pl.Deflect(), SAVANNA)
    return model, *train_on_crops(model, image, mask, 2, steps, batch_size=4, lr=1e-2, head_lr=1e-2, seed=seed)


# --- crops of one image ---


def test_training_learns_what_only_near_infrared_shows():
    (spectral, head, losses), (rgb, other, _) = train(steps=60), train(steps=60, method=pl.Frozen())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    crops = list(ChipCrops(*problem(), 32, "test", 16, seed=2**16))
    x, truth = (torch.stack([crop[name] for crop in crops]) for name in ("image", "mask"))
    found = [(decode(model(x)).argmax(1) == truth).float().mean() for model, decode in ((spectral, head), (rgb, other))]
    assert found[0] > 0.8 and found[0] > found[1] + 0.15


def test_the_same_seed_gives_the_same_losses_and_another_seed_others():
    first, again, other = (train(steps=4, seed=seed)[2] for seed in (0, 0, 1))
    assert len(first) == 4 and first == again != other


# --- the chip ---


@pytest.fixture(scope="module")
def chip():
    return savanna_chip()


def test_the_chip_is_reflectance_with_named_bands(chip):
    assert chip["image"].shape == (4, 300, 300) and chip["image"].dtype == torch.float32
    assert chip["bands"] == SAVANNA and chip["sensor"] == "sentinel2" and chip["meta"]["gsd"] == 10
    assert chip["image"].min() >= 0 and 0.2 < chip["image"].max() < 1.6
    # Vegetation: near infrared far above red.
    assert chip["image"][3].mean() > 2 * chip["image"][2].mean()
    adapted(pl.Deflect(), chip["bands"], image_size=296)(chip["image"][None, :, :296, :296])


def test_classes_are_the_thresholds_they_say(chip):
    _, green, red, nir = chip["image"]
    classes = savanna_classes(chip["image"])
    closed = (nir - red) / (nir + red) >= 0.5
    assert torch.equal(classes >= 2, closed)
    cvi = nir * red / green**2
    for low, inside in ((0, ~closed), (2, closed)):
        high = classes[inside] == low + 1
        assert 0.45 < high.float().mean() < 0.55
        assert cvi[inside][high].min() >= cvi[inside][~high].max()
    assert sorted(classes.unique().tolist()) == [0, 1, 2, 3]


# --- crops ---


def columns_seen(part: str, gap: int) -> set[int]:
    """Which columns of the chip crops come from: the image's values are its column numbers."""
    image = torch.arange(60.0).expand(2, 40, 60)
    crops = ChipCrops(image, image[0].long(), 8, part, 200, seed=4, gap=gap)
    for crop in crops:
        assert torch.equal(crop["image"][0].long(), crop["mask"])  # turned together
    return {int(v) for crop in crops for v in crop["image"].unique()}


@pytest.mark.parametrize("gap", [0, 7, 14])
def test_halves_of_the_chip_are_apart(gap):
    train, test = columns_seen("train", gap), columns_seen("test", gap)
    assert min(train) == 0 and max(test) == 59
    assert min(test) - max(train) - 1 >= gap


def test_crops_depend_on_seed_and_number_alone():
    image, mask = problem()
    a, b, c = (ChipCrops(image, mask, 16, "train", 5, seed=s) for s in (0, 0, 1))
    assert torch.equal(a[3]["image"], b[3]["image"]) and torch.equal(a[3]["mask"], b[3]["mask"])
    assert not torch.equal(a[3]["image"], a[2]["image"]) and not torch.equal(a[3]["image"], c[3]["image"])
    assert len(a) == 5 and a[0]["image"].shape == (4, 16, 16)
    with pytest.raises(IndexError):
        a[5]


@pytest.mark.parametrize(
    ("options", "says"), [(dict(part="val"), "'val'.*train.*test"), (dict(size=60), r"60 px.*train.*\(48, 49\)")]
)
def test_impossible_crops_are_named(options, says):
    with pytest.raises(ValueError, match=says):
        ChipCrops(*problem(), **(dict(size=16, part="train", length=1) | options))
