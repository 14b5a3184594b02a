"""The data module, and what is done to a whole batch: turns, flips, sizes."""

import types

import numpy as np
import pytest
import torch
from helpers import SAVANNA
from toy_data import Toy, toy_data

from peftlib.data.datamodule import EarthData
from peftlib.training.augmentation import d4, random_d4, resize_image, resize_mask

# --- batches and order ---


def order(loader, epoch: int | None = None) -> list[str]:
    if epoch is not None:
        loader.sampler.set_epoch(epoch)
    return [meta["source"] for batch in loader for meta in batch["meta"]]


def in_process(data: EarthData, rank: int, world: int) -> EarthData:
    data.trainer = types.SimpleNamespace(global_rank=rank, world_size=world)
    return data


def test_batches_have_the_form_of_collate():
    batch = next(iter(toy_data(batch_size=3).train_dataloader()))
    assert batch["image"].shape == (3, 4, 32, 32) and batch["mask"].shape == (3, 32, 32)
    assert batch["label"].dtype == torch.long and batch["bands"] == SAVANNA and len(batch["meta"]) == 3


def test_the_order_depends_on_seed_and_epoch_alone():
    loader = toy_data(seed=3).train_dataloader()
    torch.manual_seed(99)
    first, second = order(loader, 0), order(loader, 1)
    assert sorted(first) == sorted(second) == [f"toy {i}" for i in range(8)]
    assert first != second and first != sorted(first)
    again = toy_data(seed=3).train_dataloader()
    assert (order(again, 1), order(again, 0)) == (second, first)
    assert order(toy_data(seed=4).train_dataloader(), 0) != first


def test_processes_share_images_and_evaluate_each_once():
    whole = order(toy_data(train=7).train_dataloader(), 0)
    parts = [order(in_process(toy_data(train=7), rank, 2).train_dataloader(), 0) for rank in (0, 1)]
    assert [len(part) for part in parts] == [4, 4] and set(parts[0]) | set(parts[1]) == set(whole)
    val = [order(in_process(toy_data(val=5), rank, 2).val_dataloader()) for rank in (0, 1)]
    assert val == [["toy 0", "toy 2", "toy 4"], ["toy 1", "toy 3"]]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: EarthData(Toy(0), Toy(1)), r"no images in \['train'\]"),
        (lambda: EarthData(Toy(1), Toy(1), Toy(0)), r"no images in \['test'\]"),
        (lambda: toy_data(batch_size=0), "batch_size=0.*at least 1"),
        (lambda: toy_data(workers=-1), "workers=-1.*at least 0"),
        (lambda: EarthData(Toy(1), Toy(1)).test_dataloader(), "no test part"),
        (lambda: toy_data().unseen_split(), "no unseen part"),
    ],
)
def test_impossible_data_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_sets_of_different_bands_are_refused():
    other = Toy(1)
    other.bands = ("B04", "B03", "B02", "B08")
    with pytest.raises(ValueError, match=r"different bands: .*'val': \('B04'"):
        EarthData(Toy(1), other)


# --- turns and flips ---


def test_each_image_and_its_mask_take_their_own_turn():
    """The bits of a number say: flip, flip, and transpose, which is a quarter turn and a flip."""
    x = torch.rand(8, 3, 5, 5)
    mask = (x[:, 0] * 100).long()
    images, masks = d4(x, torch.arange(8)), d4(mask, torch.arange(8))
    assert torch.equal((images[:, 0] * 100).long(), masks)
    for choice in range(8):
        expected = torch.flip(x[choice], (-1,)) if choice & 1 else x[choice]
        expected = torch.flip(expected, (-2,)) if choice & 2 else expected
        expected = torch.rot90(expected, 1, (-2, -1)).flip(-2) if choice & 4 else expected
        assert torch.equal(images[choice], expected)
    same = d4(x[:1].expand(8, -1, -1, -1), torch.arange(8))
    assert len({tuple(one.flatten().tolist()) for one in same}) == 8  # all symmetries of the square


def test_random_d4s_are_all_there_and_reach_image_and_mask():
    x = torch.arange(64.0).view(1, 1, 8, 8).repeat(200, 2, 1, 1)
    images, masks = random_d4(x, x[:, 0].long())
    assert torch.equal(images[:, 0].long(), masks) and torch.equal(images[:, 0], images[:, 1])
    counts = np.unique(images.flatten(1).numpy(), axis=0, return_counts=True)[1]
    assert len(counts) == 8 and counts.min() >= 10
    assert random_d4(x)[1] is None


# --- sizes ---


def test_masks_are_resized_to_the_class_at_the_centre():
    mask = torch.arange(16).view(1, 4, 4)
    assert resize_mask(mask, (2, 2)).tolist() == [[[5, 7], [13, 15]]] and resize_mask(mask, (4, 4)) is mask
    for size in ((3, 5), (6, 2), (8, 8)):
        expected = torch.nn.functional.interpolate(mask[None].float(), size, mode="nearest-exact")[0].long()
        assert torch.equal(resize_mask(mask, size), expected)


def test_images_are_resized_bilinearly_with_their_mask():
    x = torch.rand(2, 3, 10, 12)
    assert resize_image(x, (10, 12)) is x
    larger = torch.nn.functional.interpolate(x, (20, 30), mode="bilinear")
    torch.testing.assert_close(resize_image(x, (20, 30)), larger)
    blocks = torch.tensor([[0, 1], [2, 3]]).repeat_interleave(6, 0).repeat_interleave(6, 1)[None]
    smaller = resize_image(blocks[None].float(), (4, 4))[0]
    assert torch.equal(smaller[:, ::3, ::3].round().long(), resize_mask(blocks, (4, 4))[:, ::3, ::3])


def test_missing_pixels_stay_missing():
    x = torch.rand(1, 1, 8, 8)
    x[..., 2, 2] = float("nan")
    small = resize_image(x, (4, 4))
    assert small.isnan().any() and small.isfinite().any()
