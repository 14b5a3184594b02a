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
from peftlib.data.readers.geobench import read_sample

TRUE_ORDER = ("B01", "B02", "B03", "B04", "B05", "B07", "B8A", "B08", "B11", "B12")
STORED_NAMES = """01 - Coastal aerosol, 02 - Blue, 03 - Green, 04 - Red, 05 - Vegetation Red Edge, 06 - Vegetation Red
Edge, 07 - Vegetation Red Edge, 08 - NIR, 08A - Vegetation Red Edge, 09 - Water vapour, 10 - SWIR -
Cirrus, 11 - SWIR, 12 - SWIR""".replace("\n", " ").split(", ")


def rewrite(archive, label=1, change=lambda bands: bands, **more):
    """The archive's sample with other bands, label or attributes."""
    (path,) = archive.files
    bands, _ = read_sample(path)
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
        (lambda bands: {n: v for n, v in bands.items() if n != "04 - Red"}, r"differing: \['04 - Red'\]"),
        (lambda bands: bands | {"13 - Extra": bands["04 - Red"]}, r"differing: \['13 - Extra'\]"),
        (lambda bands: {n.replace("Red", "red"): v for n, v in bands.items()}, "04 - red"),
        (lambda bands: bands | {"04 - Red_2015-06-30": bands["04 - Red"]}, "one band at several dates"),
        (lambda bands: bands | {"04 - Red": bands["04 - Red"][:4]}, "bands of different sizes"),
    ],
)
def test_wrong_bands_are_refused(tmp_path, change, words):
    dataset = rewrite(so2sat(tmp_path), change=change)
    with pytest.raises(ValueError, match=words) as refused:
        dataset[0]
    assert "id_0001.hdf5" in str(refused.value)


@pytest.mark.parametrize(
    "label, words", [(17, "classes are 0 to 16"), (-1, "classes are"), ("water", "a class number")]
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
def test_code_in_the_attributes_is_refused_and_not_run(tmp_path, function):
    done = tmp_path / "done"
    call = Runs(function, f"__import__('os').mkdir({str(done)!r})" if function is eval else str(done))
    for attributes in ({"label": call}, {"label": 1, "also": [call]}):
        with pytest.raises(ValueError, match="do not need; not run") as refused:
            rewrite(so2sat(tmp_path / "data"), pickled=pickle.dumps(attributes))[0]
        assert "id_0001.hdf5" in str(refused.value) and not done.exists()


def test_attributes_that_are_no_pickle_are_refused(tmp_path):
    for pickled in (b"nonsense", b"", "no bytes", b"\x80\x04}."):
        with pytest.raises(ValueError, match="not a readable file of GEO-Bench"):
            rewrite(so2sat(tmp_path), pickled=pickled)[0]


def test_code_as_text_of_the_attribute_is_not_run(tmp_path):
    (path,) = so2sat(tmp_path).files
    with h5py.File(path, "a") as file:
        file.attrs["pickle"] = f"__import__('os').mkdir({str(tmp_path / 'done')!r})"
    with pytest.raises(ValueError, match="not a readable file of GEO-Bench"):
        read_sample(path)
    assert not (tmp_path / "done").exists()


def test_a_damaged_file_is_refused(tmp_path):
    (path,) = so2sat(tmp_path).files
    whole = path.read_bytes()
    for bad in (b"", b"nonsense", whole[: len(whole) // 2], whole[:48] + bytes(64) + whole[112:]):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"id_0001\.hdf5 is not a readable file of GEO-Bench"):
            read_sample(path)
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        del file.attrs["pickle"]
    with pytest.raises(ValueError, match=r"id_0001\.hdf5 is not a readable file of GEO-Bench"):
        read_sample(path)


def test_numbers_pickled_by_numpy_1_are_read(tmp_path):
    """GEO-Bench's files were written before numpy 2 renamed the module that its pickles name."""
    data = pickle.dumps({"label": np.int64(3)}, protocol=4)
    new, old = b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray"
    assert data.count(new) == 1 and data[2:3] == b"\x95"
    length = struct.unpack("<Q", data[3:11])[0] - 1
    data = data[:3] + struct.pack("<Q", length) + data[11:].replace(new, old)
    assert rewrite(so2sat(tmp_path), pickled=data)[0]["label"] == 3
