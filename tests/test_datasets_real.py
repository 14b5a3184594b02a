"""The readers on real images, where ``PEFTLIB_DATA`` points to a folder that has them."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from peftlib.data import DATASETS, from_folder, load

SPLITS = {"eurosat": ("train", "test"), "marida": ("train", "val", "test"), "water": ("train", "val", "test")}
SPLITS["calfire"] = SPLITS["water"]


def real(name: str) -> dict:
    """Split -> data set, or a skip that says what is missing."""
    cls = DATASETS[name]
    where = os.environ.get("PEFTLIB_DATA")
    if not where:
        pytest.skip("PEFTLIB_DATA is not set: no real images")
    names = (cls.folder, *cls.other_folders)
    if not any((Path(where) / folder).is_dir() for folder in names):
        pytest.skip(f"PEFTLIB_DATA={where} has none of {names}")
    return {split: load(name, split=split) for split in SPLITS[name]}


def few(dataset, count: int = 12) -> list[dict]:
    """Samples from all over a data set."""
    return [dataset[i] for i in range(0, len(dataset), max(1, len(dataset) // count))]


@pytest.mark.parametrize("name", SPLITS)
def test_images_look_like_reflectance(name):
    """Means near the sensor's defaults where these are of the same place, else in the range of land, sea or clouds."""
    splits = real(name)
    images = torch.stack([s["image"].nanmean((1, 2)) for dataset in splits.values() for s in few(dataset)])
    bands = next(iter(splits.values())).band_set
    expected, _ = bands.statistics()
    for i, (band, mean) in enumerate(zip(bands.names, images.mean(0).tolist(), strict=True)):
        if name == "eurosat":
            assert 0.7 < mean / expected[i] < 1.4, band  # the defaults are EuroSAT's own
        else:
            low, high = (0.005, 0.1) if name == "marida" else (0.02, 0.4)
            assert low < mean < high, band


def test_vegetation_is_where_the_labels_say():
    """Red and near infrared have their names: forests are green and bright in the near infrared, water is neither."""
    ndvi = {"Forest": [], "SeaLake": []}
    dataset = real("eurosat")["train"]
    red, nir, b8a, vapour = (dataset.bands.index(band) for band in ("B04", "B08", "B8A", "B09"))
    for path, sample in zip(dataset.items, dataset, strict=True):
        if path.parent.name in ndvi:
            mean = sample["image"].mean((1, 2))
            ndvi[path.parent.name].append(float((mean[nir] - mean[red]) / (mean[nir] + mean[red])))
            assert path.parent.name != "Forest" or mean[b8a] > 2 * mean[vapour]  # B8A is last, not ninth
    assert min(ndvi["Forest"]) > 0.5 > 0.2 > sum(ndvi["SeaLake"]) / len(ndvi["SeaLake"])


def test_a_folder_is_read_as_its_reader_reads_it():
    water = real("water")["test"]
    masks = dict(masks="masks/{id}.png", mask_values={0: "not water", 1: "water"}, images="images/{id}.tif")
    own = from_folder(water.root, water.all_bands, water.classes, sensor="landsat8", **masks)
    numbers = {item.paths[0]: i for i, item in enumerate(own.items)}
    for (path, _), expected in zip(water.items, water, strict=True):
        sample = own[numbers[path]]
        assert torch.equal(sample["image"], expected["image"]) and torch.equal(sample["mask"], expected["mask"])


@pytest.mark.parametrize("name", SPLITS)
def test_no_file_is_in_two_splits(name):
    items = [item for dataset in real(name).values() for item in dataset.items]
    names = [(item[0].name, *item[3:]) if isinstance(item, tuple) else item.name for item in items]
    assert max(Counter(names).values()) == 1
