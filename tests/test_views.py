"""Views of data sets: parts, joins, copies in memory, tiles, folds. Samples keep their form."""

import copy
import pickle
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset
from toy_data import Toy

from peftlib.data.subsets import Concat, InMemory, Mapped, Subset, Tiles, every_nth, folds


class Masked(Dataset):
    """Images whose pixels are numbered, with masks of -1 where nothing is known. Counts how often it is read."""

    name, task, classes, sensor = "masked", "segmentation", ("low", "high"), "sentinel2"
    bands, ignore_index = ("B04", "B03", "B02"), -1

    def __init__(self, *masks):
        self.masks, self.read, self.scenes = [torch.as_tensor(mask) for mask in masks], 0, range(len(masks))

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, i: int) -> dict:
        mask = self.masks[i]
        self.read += 1
        image = torch.arange(3 * mask.numel()).view(3, *mask.shape) / 1e4 + i
        return {
            "image": image,
            "mask": mask,
            "bands": self.bands,
            "sensor": self.sensor,
            "meta": {"source": str(self.scenes[i])},
        }


class Labelled(Dataset):
    """Labels alone."""

    task = "classification"

    def __init__(self, labels):
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict:
        return {"label": self.labels[i], "source": i}


def numbers(view) -> list[str]:
    return [view[i]["meta"]["source"] for i in range(len(view))]


def blank(count: int) -> Masked:
    return Masked(*[torch.zeros(2, 2)] * count)


# --- tiles ---


def tiles_one_by_one(data, side: int, per_image: int) -> list[tuple]:
    """Tiles with a known pixel, row by row; of each image the ``per_image`` with most of them, first come first."""
    kept = []
    for number, mask in enumerate(data.masks):
        found = []
        for top in range(0, mask.shape[0] - side + 1, side):
            for left in range(0, mask.shape[1] - side + 1, side):
                known = sum(int(mask[y, x]) != -1 for y in range(top, top + side) for x in range(left, left + side))
                found += [(known, number, top, left)] if known else []
        while per_image and len(found) > per_image:
            fewest = min(found)[0]
            found.pop(max(i for i, tile in enumerate(found) if tile[0] == fewest))
        kept += found
    return kept


@given(st.integers(0, 2**20), st.integers(1, 7), st.integers(0, 4), st.integers(0, 63))
def test_tiles_are_those_found_one_by_one(seed, side, per_image, unknown):
    drawn = torch.randint(-1, 2, (2, 7, 9), generator=torch.Generator().manual_seed(seed))
    data = Masked(*torch.where(torch.arange(63).view(7, 9) < unknown, -1, drawn))
    tiles, expected = Tiles(data, side, per_image), tiles_one_by_one(data, side, per_image)
    assert len(tiles) == len(expected)
    for tile, (_, number, top, left) in zip([tiles[i] for i in range(len(tiles))], expected, strict=True):
        window = (..., slice(top, top + side), slice(left, left + side))
        assert tile["meta"]["source"] == str(number)
        assert torch.equal(tile["image"], data[number]["image"][window])
        assert torch.equal(tile["mask"], data[number]["mask"][window])


@pytest.mark.parametrize("side", [0, 5, 8])
def test_tiles_that_do_not_fit_are_an_error(side):
    with pytest.raises(ValueError, match=rf"tiles of {side} px of an image of 4 x 8"):
        Tiles(Masked(torch.zeros(4, 8)), side)


def test_tiles_need_masks():
    data = Labelled([0, 1])
    data.name = "eurosat"
    with pytest.raises(ValueError, match="tiles of eurosat: its images have no masks"):
        Tiles(data, 2)


# --- parts, joins, copies ---


def test_parts_and_joined_sets_have_their_images_in_order():
    assert numbers(Subset(blank(5), [3, 0])) == ["3", "0"]
    both = Concat([blank(2), Subset(blank(5), [4, 3])])
    assert numbers(both) == ["0", "1", "4", "3"] and len(both) == 4 and len(list(both)) == 4


def test_held_images_are_read_once():
    data = blank(3)
    held = InMemory(data)
    assert [held[1] is held[1], data.read] == [True, 3]
    assert numbers(held) == ["0", "1", "2"] and data.read == 3


def test_mapped_images_are_read_once_for_all_processes(tmp_path):
    """Images and masks of any size, to the bit; a file that was cut short is written again."""
    data, file = Masked(torch.tensor([[0, 1, -1]]), torch.zeros(2, 5, dtype=torch.long)), tmp_path / "held.bin"
    file.write_bytes(b"cut short")
    Mapped(data, file)
    again, data.read = Mapped(data, file), 0
    samples = [again[0], again[1]]
    assert data.read == 0 and {path.name for path in tmp_path.iterdir()} == {"held.bin", "held.pt"}
    for one, other in zip(samples, data, strict=True):
        assert torch.equal(one.pop("image"), other.pop("image")) and torch.equal(one.pop("mask"), other.pop("mask"))
        assert one == other


def test_a_damaged_image_is_named_and_nothing_is_kept(tmp_path):
    class Damaged(Masked):
        def __getitem__(self, i: int) -> dict:
            if i == 3:
                raise ValueError("fourth.tif is damaged")
            return super().__getitem__(i)

    with pytest.raises(ValueError, match=r"fourth\.tif is damaged"):
        Mapped(Damaged(*torch.zeros(6, 2, 2)), tmp_path / "held.bin")
    assert not list(tmp_path.iterdir())


VIEWS = {
    "part": lambda data: Subset(data, [1, 0]),
    "joined": lambda data: Concat([data, blank(1)]),
    "held": InMemory,
    "mapped": lambda data: Mapped(data, Path(tempfile.mkdtemp()) / "held.bin"),
    "tiles": lambda data: Tiles(data, 2),
    "tiles of a part of what is held": lambda data: Tiles(Subset(InMemory(data), [2, 1]), 1, 2),
}


@pytest.mark.parametrize("kind", VIEWS)
def test_a_view_has_the_facts_of_its_data_and_can_be_sent_and_copied(kind):
    view = VIEWS[kind](blank(3))
    for other in (view, pickle.loads(pickle.dumps(view)), copy.deepcopy(view), copy.copy(view)):
        assert (other.bands, other.classes, other.task) == (Masked.bands, Masked.classes, Masked.task)
        assert (other.sensor, other.ignore_index) == (Masked.sensor, Masked.ignore_index)
        assert numbers(other) == numbers(view) and not hasattr(other, "wings")
    assert not hasattr(object.__new__(type(view)), "bands")  # as while a copy is being made


# --- folds and spread ---


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.integers(1, 8))
def test_folds_are_a_partition_balanced_in_size_and_labels(labels, number):
    data = Labelled(labels)
    if not 2 <= number <= len(labels):
        with pytest.raises(ValueError, match=rf"{number} folds of {len(labels)} images; choose 2 or more"):
            folds(data, number)
        return
    parts = folds(data, number)
    assert parts == folds(data, number) and len(parts) == number
    assert sorted(i for part in parts for i in part) == list(range(len(labels)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for label in set(labels):
        counts = [Counter(labels[i] for i in part)[label] for part in parts]
        assert max(counts) - min(counts) <= 1


def test_folds_without_labels_are_balanced_in_size_and_drawn_by_a_seed():
    parts = folds(Toy(8), 3)
    assert sorted(map(len, parts)) == [2, 3, 3] and sorted(i for part in parts for i in part) == list(range(8))
    assert folds(Toy(8), 3, seed=1) != parts == folds(Toy(8), 3, seed=0)


def test_images_of_one_scene_are_in_one_fold():
    data = Masked(*[torch.zeros(2, 2)] * 24)
    data.fold_by, data.scenes = "source", "aaaaaaaabbbbccccdddeefgg"
    for view in (data, Concat([Subset(data, range(10)), Subset(data, range(10, 24))])):
        parts = folds(view, 3)
        assert sorted(i for part in parts for i in part) == list(range(24)) and list(map(len, parts)) == [8, 8, 8]
        scenes = [{data.scenes[i] for i in part} for part in parts]
        assert sum(map(len, scenes)) == 7
    with pytest.raises(ValueError, match=r"8 folds of images with 7 values of 'source'"):
        folds(data, 8)


@given(st.integers(1, 50), st.integers(0, 60))
def test_spread_images_are_even_and_as_many_as_asked_for(length, most):
    data = blank(length)
    kept = every_nth(data, most)
    if not 0 < most < length:
        assert kept is data
        return
    steps = [b - a for a, b in pairwise([*kept.indices, length])]
    assert len(kept) == most and kept.indices[0] == 0
    assert min(steps) >= 1 and max(steps) - min(steps) <= 1
