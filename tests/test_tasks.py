"""Training on top of an adapted ViT, and the chip that needs no download."""

import numpy as np
import pytest
import torch
from helpers import SAVANNA, adapted, images
from torch.utils.data import DataLoader

import peftlib as pl
from peftlib.data import ChipCrops, savanna_chip, savanna_classes
from peftlib.studies.crops import crop_accuracy, train_on_crops
from peftlib.training.decoders import LinearDecoder
from peftlib.training.fit import quiet_trainer
from peftlib.training.tasks import Segmentation


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
    image, mask = problem()
    (spectral, head, losses), (rgb, other, _) = train(steps=60), train(steps=60, method=pl.Frozen())
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])
    found = [crop_accuracy(*pair, image, mask, crops=16) for pair in ((spectral, head), (rgb, other))]
    assert found[0] > 0.8 and found[0] > found[1] + 0.15


def test_accuracy_is_the_share_of_right_pixels():
    image, mask = problem()
    model, head, _ = train(steps=2)
    crops = ChipCrops(image, mask, 32, "test", 5, seed=2**16)
    right = [(head(model(c["image"][None])).argmax(1)[0] == c["mask"]).float().mean() for c in crops]
    assert crop_accuracy(model, head, image, mask, crops=5) == pytest.approx(float(sum(right) / 5), abs=1e-6)


def test_the_same_seed_gives_the_same_losses_and_another_seed_others():
    first, again, other = (train(steps=4, seed=seed)[2] for seed in (0, 0, 1))
    assert len(first) == 4 and first == again != other


# --- segmentation ---


def test_what_was_counted_before_an_evaluation_has_no_say():
    """Spawned processes share the memory that metrics count in: each has to begin with counts of its own."""
    task, trainer = Segmentation(adapted(pl.Frozen(), SAVANNA), 2), quiet_trainer(accelerator="cpu")
    loader = DataLoader([{"image": images(SAVANNA)[0], "mask": torch.ones(32, 32).long()}])
    right = trainer.test(task, loader, verbose=False)
    with torch.inference_mode():
        task.metrics.update(torch.zeros(1, 9, dtype=torch.long), torch.ones(1, 9, dtype=torch.long))
    assert trainer.test(task, loader, verbose=False) == right


def test_ignored_pixels_do_not_count():
    model = adapted(pl.Frozen(), SAVANNA)
    task = Segmentation(model, 2, ignore_index=-1)
    batch = {"image": images(SAVANNA), "mask": torch.zeros(2, 32, 32).long()}
    batch["mask"][:, :16] = -1
    loss = task.training_step(batch, 0)
    logits = task(batch["image"])[:, :, 16:]
    expected = -torch.log_softmax(logits, 1)[:, 0].mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    result = quiet_trainer(accelerator="cpu").test(
        task, DataLoader([{k: v[0] for k, v in batch.items()}]), verbose=False
    )
    assert result[0]["accuracy"] == pytest.approx(float((logits[0].argmax(0) == 0).float().mean()), abs=1e-6)


def test_linear_decoder_places_patches_row_by_row():
    decoder = LinearDecoder(5, 2, grid_size=(2, 3), image_size=(8, 12))
    tokens = torch.randn(1, 3 + 6, 5)  # three prefix tokens
    logits = decoder(tokens)
    assert logits.shape == (1, 2, 8, 12)
    for corner, token in (((0, 0), 3), ((0, -1), 5), ((-1, 0), 6), ((-1, -1), 8)):
        torch.testing.assert_close(logits[0, :, *corner], decoder.linear(tokens[0, token]))


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


def test_upsampling_keeps_means_and_says_its_distance(chip):
    big = savanna_chip(upsample=2)
    assert big["image"].shape == (4, 600, 600) and big["meta"]["gsd"] == 5
    torch.testing.assert_close(big["image"].mean((1, 2)), chip["image"].mean((1, 2)), rtol=1e-3, atol=0)


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


def test_crops_are_turned_and_flipped():
    image = torch.arange(64.0).view(1, 8, 8).repeat(1, 1, 3)
    crops = ChipCrops(image, image[0].long(), 8, "train", 200, gap=8)
    forms = {tuple(c["image"].flatten().tolist()) for c in crops if set(c["image"].unique().tolist()) == set(range(64))}
    assert len(forms) >= 8


@pytest.mark.parametrize(
    ("options", "says"), [(dict(part="val"), "'val'.*train.*test"), (dict(size=60), r"60 px.*train.*\(48, 49\)")]
)
def test_impossible_crops_are_named(options, says):
    with pytest.raises(ValueError, match=says):
        ChipCrops(*problem(), **(dict(size=16, part="train", length=1) | options))
