"""The registry of labelled data sets: each states its facts, and reading needs nothing that importing loads."""

import ast
import sys
from pathlib import Path

import pytest
import torch

from peftlib.data import DATASETS, EarthDataset, load
from peftlib.data.dataset import NODATA, TASKS
from peftlib.sensors.bands import SENSORS, band_set

CLASSES = dict(so2sat=17, brick_kiln=2, forestnet=12, burn_scars=2, mados=15, sen1floods11=2, eurosat=10, ben=19)
CLASSES |= dict(marida=15, water=2, calfire=2)
NAMES = list(CLASSES)


def test_the_registry_is_complete():
    ours = {name for name, cls in DATASETS.items() if cls.__module__.startswith("peftlib.data.")}
    assert {*NAMES, "spectral_scenes", "phenology"} == ours
    assert len({DATASETS[name].folder for name in NAMES}) == len(NAMES)


@pytest.fixture
def registry(monkeypatch):
    """The registry, as it was after the test."""
    before = dict(DATASETS)
    yield DATASETS
    DATASETS.clear()
    DATASETS.update(before)


def test_a_class_with_a_name_is_entered_and_needs_no_more(registry, tmp_path):
    class Base(EarthDataset):
        """Without a name: not entered."""

    class Grey(Base):
        name, folder, task, classes, sensor, gsd = (
            "grey",
            "grey",
            "classification",
            ("dark", "light"),
            "sentinel2",
            10.0,
        )
        all_bands, source, licence = ("B04", "B03", "B02", "B08"), "nowhere", "none"

        def find(self):
            return [0.1, 0.4]

        def read(self, item):
            return {"image": torch.full((4, 2, 2), item), "label": int(item > 0.2), "meta": {"source": f"grey {item}"}}

    assert registry["grey"] is Grey and Base not in registry.values()
    data = load("grey", bands=("B08", "B04", "B03", "B02"))
    assert [s["label"] for s in data] == [0, 1] and data[0]["bands"][0] == "B08" and data[0]["meta"]["gsd"] == 10
    assert data.evaluations() == {} and data.primary_metric is None


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_states_its_facts(name, monkeypatch, tmp_path):
    cls = DATASETS[name]
    assert issubclass(cls, EarthDataset) and cls.name == name
    assert cls.task in TASKS and cls.nodata in NODATA
    assert len(cls.classes) == CLASSES[name] == len(set(cls.classes))
    assert cls.sensor in SENSORS and set(cls.all_bands) <= set(SENSORS[cls.sensor])
    assert len(band_set(cls.all_bands, cls.sensor)) == len(cls.all_bands)  # with red, green and blue, none repeated
    assert 1 <= cls.gsd <= 100 and {"train", "val", "test"} <= set(cls.splits)
    assert cls.source.startswith("https://") and len(cls.licence) > 2
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


def test_what_no_program_can_fetch_says_so(tmp_path):
    with pytest.raises(ValueError, match="cannot be fetched by a program; get it from https://"):
        load("so2sat", root=tmp_path / "data", download=True)


def test_importing_is_light():
    """What only some readers need is imported where it is used."""
    heavy = {
        "rasterio",
        "h5py",
        "torchgeo",
        "pandas",
        "xarray",
        "spyndex",
        "torchvision",
        "huggingface_hub",
        "earthlib",
    }
    for path in Path(sys.modules["peftlib.data"].__file__).parent.rglob("*.py"):
        imports = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {getattr(node, "module", None) or node.names[0].name for node in imports}
        assert not {name.split(".")[0] for name in names} & heavy, path
