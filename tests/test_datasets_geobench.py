"""GEO-Bench's files: names of bands that lie, attributes that could run code, and damage."""

import json
import os
import pickle
import struct

import h5py
import numpy as np
import pytest
import torch
from archives import SIZE, brick_kiln, so2sat, write_sample

from peftlib.data import DATASETS

TRUE_ORDER = ("B01", "B02", "B03", "B04", "B05", "B07", "B8A", "B08", "B11", "B12")
STORED_NAMES = """01 - Coastal aerosol, 02 - Blue, 03 - Green, 04 - Red, 05 - Vegetation Red Edge, 06 - Vegetation Red
Edge, 07 - Vegetation Red Edge, 08 - NIR, 08A - Vegetation Red Edge, 09 - Water vapour, 10 - SWIR -
Cirrus, 11 - SWIR, 12 - SWIR""".replace("\n", " ").split(", ")


def rewrite(archive, label=1, change=lambda bands: bands, **more):
    """The archive's sample with other bands, label or attributes."""
    (path,) = archive.files
    with h5py.File(path) as file:
        bands = {name: file[name][()] for name in file}
    write_sample(path, change(bands), label, **more)
    return archive.load()


def test_brick_kilns_channels_are_what_they_were_exported_as(tmp_path):
    """Channel i of the source is stored under name i of Sentinel-2's bands, and is band i of the export."""
    archive = brick_kiln(tmp_path)
    numbers = {name: np.full((SIZE, SIZE), 1000 + i, np.int16) for i, name in enumerate(STORED_NAMES)}
    dataset = rewrite(archive, change=lambda _: numbers)
    assert dataset.all_bands == TRUE_ORDER
    torch.testing.assert_close(dataset[0]["image"][:, 0, 0], (1000 + torch.arange(10)) / 1e4)  # 10, 11, 12 are TCI
    swir = DATASETS["brick_kiln"](root=tmp_path, bands=("B12", "B04", "B03", "B02"))[0]["image"][0]
    assert swir[0, 0] == pytest.approx(0.1009)  # stored as "09 - Water vapour"


def test_so2sat_drops_sentinel1_and_keeps_the_order_of_bands(tmp_path):
    dataset = so2sat(tmp_path).load()
    assert dataset.all_bands == ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
    assert len(dataset.channels) == 18 and dataset[0]["image"].max() < 1  # Sentinel-1 is 77 in this archive


def test_the_partition_is_the_split(tmp_path):
    archive = so2sat(tmp_path)
    lists = {"train": ["a", "b"], "valid": ["c"], "test": ["d", "e", "f"]}
    archive.listed.write_text(json.dumps(lists))
    names = {split: [path.stem for path in archive.load(split=split).items] for split in ("train", "val", "test")}
    assert names == {"train": ["a", "b"], "val": ["c"], "test": ["d", "e", "f"]}


# --- wrong contents --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda bands: {n.replace("Red", "red"): v for n, v in bands.items()}, r"04 - red.*need .*04 - Red"),
        (lambda bands: bands | {"13 - Extra": bands["04 - Red"]}, "need .* once each"),
        (lambda bands: bands | {"04 - Red_2015-06-30": bands["04 - Red"]}, "need .* once each"),
        (lambda bands: bands | {"04 - Red": bands["04 - Red"][:4]}, "same shape"),
    ],
)
def test_wrong_bands_are_refused(tmp_path, change, words):
    dataset = rewrite(so2sat(tmp_path), change=change)
    with pytest.raises(ValueError, match=words) as refused:
        dataset[0]
    assert "id_0001.hdf5" in str(refused.value)


@pytest.mark.parametrize(
    "label, words", [(17, "classes are 0 to 16"), (-1, "classes are"), ("water", "no file of so2sat")]
)
def test_a_label_that_is_no_class_is_refused(tmp_path, label, words):
    with pytest.raises(ValueError, match=words) as refused:
        rewrite(so2sat(tmp_path), label=label)[0]
    assert "id_0001.hdf5" in str(refused.value)


# --- attributes that are more than data ------------------------------------------------------------------------------


class Runs:
    """Pickles to a call."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, eval], ids=lambda f: f.__name__)
def test_code_in_the_attributes_is_not_run(tmp_path, function):
    done = tmp_path / "done"
    text = f"__import__('os').mkdir({str(done)!r})"
    call = Runs(function, text if function is eval else str(done))
    assert rewrite(so2sat(tmp_path / "data"), pickled=pickle.dumps({"label": 1, "also": [call]}))[0]["label"] == 1
    for pickled in (pickle.dumps({"label": call}), text, b"nonsense", b"", "no bytes", b"\x80\x04}."):
        with pytest.raises(ValueError, match=r"id_0001\.hdf5 is no file of so2sat"):
            rewrite(so2sat(tmp_path / "data"), pickled=pickled)[0]
    assert not done.exists()


def test_a_damaged_file_is_refused(tmp_path):
    archive = so2sat(tmp_path)
    (path,) = archive.files
    whole = path.read_bytes()
    for bad in (b"", b"nonsense", whole[: len(whole) // 2], whole[:48] + bytes(64) + whole[112:]):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"id_0001\.hdf5 is no file of so2sat"):
            archive.load()[0]


def test_numbers_pickled_by_numpy_1_are_read(tmp_path):
    """GEO-Bench's files were written before numpy 2 renamed the module that its pickles name."""
    data = pickle.dumps({"label": np.int64(3)}, protocol=4)
    new, old = b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray"
    assert data.count(new) == 1 and data[2:3] == b"\x95"
    length = struct.unpack("<Q", data[3:11])[0] - 1
    data = data[:3] + struct.pack("<Q", length) + data[11:].replace(new, old)
    assert rewrite(so2sat(tmp_path), pickled=data)[0]["label"] == 3
