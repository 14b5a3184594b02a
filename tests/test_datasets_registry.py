"""The registry of labelled data sets: each states its facts."""

import sys

import pytest

from peftlib.data import DATASETS, EarthDataset, load
from peftlib.data.dataset import NODATA
from peftlib.sensors.bands import SENSORS, band_set

CLASSES = dict(so2sat=17, brick_kiln=2, forestnet=12, burn_scars=2, mados=15, eurosat=10, marida=15)
CLASSES |= dict(water=2, calfire=2)
NAMES = list(CLASSES)


def test_the_registry_is_complete():
    ours = {name for name, cls in DATASETS.items() if cls.__module__.startswith("peftlib.data.")}
    assert {*NAMES, "spectral_scenes", "phenology"} == ours
    assert len({DATASETS[name].folder for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_states_its_facts(name, monkeypatch, tmp_path):
    cls = DATASETS[name]
    assert cls.task in ("classification", "segmentation") and cls.nodata in NODATA
    assert len(cls.classes) == CLASSES[name] == len(set(cls.classes))
    assert cls.sensor in SENSORS and set(cls.all_bands) <= set(SENSORS[cls.sensor])
    assert len(band_set(cls.all_bands, cls.sensor)) == len(cls.all_bands)  # with red, green and blue, none repeated
    assert 1 <= cls.gsd <= 100 and {"train", "val", "test"} <= set(cls.splits)
    assert cls.source.startswith("https://")
    assert cls.primary_metric in (None, *(f"iou_{name}" for name in cls.classes))
    text = sys.modules[cls.__module__].__doc__
    for word in ("Source", "Files", "Values") if name != "marida" else ("Source", "layout", "reflectance"):
        assert word in text
    assert cls.__doc__ != EarthDataset.__doc__
    monkeypatch.setenv("PEFTLIB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError) as missing:
        load(name)
    for words in (cls.source, "PEFTLIB_DATA", str(tmp_path / cls.folder)):
        assert words in str(missing.value)


def test_unknown_names_are_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"unknown data set 'imagenet'; choose from .*so2sat, .*water"):
        load("imagenet")


def test_folders_are_found_by_any_of_their_names(monkeypatch, tmp_path):
    monkeypatch.setenv("PEFTLIB_DATA", str(tmp_path))
    (tmp_path / "eurosat_ms_270").mkdir()
    with pytest.raises(FileNotFoundError, match="eurosat_ms_270"):
        load("eurosat")
    (tmp_path / "eurosat").mkdir()  # the publisher's name comes first
    with pytest.raises(FileNotFoundError, match=r"/eurosat\."):
        load("eurosat")
