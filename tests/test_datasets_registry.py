"""The registry of labelled data sets: each states its facts, and reading needs nothing that importing loads."""

import subprocess
import sys

import pytest

from peftlib.data import DATASETS, EarthDataset, load
from peftlib.data.dataset import NODATA, TASKS
from peftlib.sensors.bands import SENSORS, band_set

CLASSES = dict(so2sat=17, brick_kiln=2, forestnet=12, burn_scars=2, mados=15, sen1floods11=2, eurosat=10, ben=19)
CLASSES |= dict(marida=15, l8biome=4)
NAMES = list(CLASSES)


def test_the_registry_is_complete():
    assert set(NAMES) <= set(DATASETS)
    assert all(cls.name == name for name, cls in DATASETS.items())
    assert len({cls.folder for cls in DATASETS.values() if cls.folder}) == len(DATASETS) - 2  # two are simulated


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_states_its_facts(name):
    cls = DATASETS[name]
    assert issubclass(cls, EarthDataset) and cls.name == name
    assert cls.task in TASKS and cls.nodata in NODATA
    assert len(cls.classes) == CLASSES[name] == len(set(cls.classes))
    assert cls.sensor in SENSORS and set(cls.all_bands) <= set(SENSORS[cls.sensor])
    assert len(band_set(cls.all_bands, cls.sensor)) == len(cls.all_bands)  # with red, green and blue, none repeated
    assert 1 <= cls.gsd <= 100
    assert {"train", "val", "test"} <= set(cls.splits)
    assert cls.source.startswith("https://") and len(cls.licence) > 2
    text = sys.modules[cls.__module__].__doc__
    for word in ("Source", "Files", "Values") if name != "marida" else ("Source", "layout", "reflectance"):
        assert word in text
    assert cls.__doc__ != EarthDataset.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_that_is_not_there_says_how_to_get_it(name, monkeypatch, tmp_path):
    monkeypatch.setenv("PEFTLIB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError) as missing:
        load(name)
    for words in (DATASETS[name].source, "PEFTLIB_DATA", str(tmp_path / DATASETS[name].folder)):
        assert words in str(missing.value)


def test_unknown_names_are_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"unknown data set 'imagenet'; choose from .*so2sat, .*l8biome"):
        load("imagenet")


def test_folders_are_found_by_any_of_their_names(monkeypatch, tmp_path):
    monkeypatch.setenv("PEFTLIB_DATA", str(tmp_path))
    (tmp_path / "eurosat_ms_270").mkdir()
    with pytest.raises(FileNotFoundError, match="eurosat_ms_270"):
        load("eurosat")
    (tmp_path / "eurosat").mkdir()  # the publisher's name comes first
    with pytest.raises(FileNotFoundError, match=r"/eurosat\."):
        load("eurosat")


@pytest.mark.parametrize("name", ["so2sat", "brick_kiln", "forestnet", "sen1floods11", "l8biome"])
def test_what_no_program_can_fetch_says_so(name, tmp_path):
    with pytest.raises(ValueError, match="cannot be fetched by a program; get it from https://"):
        load(name, root=tmp_path / "data", download=True)


def test_importing_is_light():
    heavy = ["rasterio", "h5py", "torchgeo", "pandas", "xarray", "spyndex"]
    code = f"import sys, peftlib.data; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
