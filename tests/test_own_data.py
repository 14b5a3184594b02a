"""``docs/own_data.md``: its lines run, from files of foreign kinds to a map."""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from helpers import tiny_vit
from rasterio.transform import from_origin
from rasterio.warp import transform_geom
from test_folder import write as write_values

import peftlib as pl
from peftlib.data import from_folder
from peftlib.data.dataset import opened
from peftlib.data.reading import read_window
from peftlib.training.predict import NO_CLASS

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "own_data.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
WHERE = {"crs": "EPSG:32633", "transform": from_origin(400_000, 5_800_000, 30, 30)}
PLACES = [(5, 5), (150, 40), (100, 20), (190, 55), (12, 50), (101, 30)]  # columns and rows of a scene
draw = np.random.default_rng(0)


def write(path, channels, size, low=300, high=3000, dtype="uint16", times=1):
    facts = {"driver": "PNG", "crs": None} if path.suffix == ".png" else WHERE
    write_values(path, draw.integers(low, high, (channels, *size)).astype(dtype) * times, **facts)


def h5(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values


def geojson(path, kind, shapes):
    """Shapes in the scene's pixels (column, row), as degrees; their classes alternate."""
    features = []
    for i, pixels in enumerate(shapes):
        metres = (np.array(pixels) * (30, -30) + (400_000, 5_800_000)).tolist()
        where = transform_geom("EPSG:32633", "EPSG:4326", {"type": kind, "coordinates": metres})
        features.append({"type": "Feature", "geometry": where, "properties": {"label": ("crop", "forest")[i % 2]}})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def table(path, parts):
    path.write_text("\n".join(["file,split", *(f"{file},{part}" for file, part in parts.items())]))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Small folders of the kinds that the page names."""
    root, parts = tmp_path_factory.mktemp("own"), dict(enumerate(("train", "train", "train", "val", "val", "test")))
    chips = {f"{('Forest', 'River')[i % 2]}/{i}.tif": ("train", "val", "test")[i // 2] for i in parts}
    for i, chip in enumerate(chips):
        write(root / f"water/images/{i}.tif", 12, (40, 40))
        write(root / f"water/masks/mask_{i}.png", 1, (40, 40), 0, 2, "uint8", times=255)
        h5(root / f"slides/img/image_{i}.h5", img=draw.uniform(0.3, 1.7, (32, 40, 14)))
        h5(root / f"slides/mask/mask_{i}.h5", mask=draw.integers(0, 2, (32, 40), dtype="uint8"))
        write(root / "chips" / chip, 4, (32, 32))
    for name, size in {"a": (97, 70), "b": (64, 64), "c": (40, 150), "d": (70, 90), "e": (66, 30)}.items():
        write(root / f"fires/images/{name}.tif", 5, size)
        write(root / f"fires/masks/{name}.tif", 1, size, 0, 2, "uint8")
    for name, size in {"a": (33, 50), "b": (40, 40), "c": (70, 33)}.items():
        write(root / f"forest/2019/{name}.tif", 4, size)
        write(root / f"forest/2020/{name}.tif", 4, size)
        write(root / f"forest/masks/{name}.tif", 1, size, 0, 2, "uint8")
    write(root / "scene/landsat.tif", 6, (60, 200), 8000, 14000)
    geojson(root / "scene/points.geojson", "Point", PLACES)
    square = np.array([[0, 0], [6, 0], [6, 6], [0, 6], [0, 0]])
    geojson(root / "scene/polygons.geojson", "Polygon", [[square + at] for at in PLACES[:-1]])
    table(root / "water/splits.csv", parts)
    table(root / "slides/splits.csv", parts)
    table(root / "chips/splits.csv", chips)
    table(root / "forest/splits.csv", {"a": "train", "b": "val", "c": "test"})
    table(root / "fires/folds.csv", {f"images/{name}.tif": i for i, name in enumerate("abcde")})
    return root


def on_scene(folders, **options):
    own = dict(bands=("B2", "B3", "B4", "B5", "B6", "B7"), sensor="landsat8", classes=("crop", "forest"), tile=16)
    return from_folder(folders / "scene/landsat.tif", **own | dict(scale=1 / 2.75e-5, offset=-7272.7) | options)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_lines_of_the_page_run(number, folders, monkeypatch):
    monkeypatch.chdir(folders)
    monkeypatch.setattr(pl, "load_backbone", lambda *_, **__: tiny_vit())
    code = EXAMPLES[number]
    assert len([line for line in code.splitlines() if line]) <= 12
    known: dict = {}
    exec(re.sub(r"steps=\d+", "steps=2", code), known)
    source, target = re.findall(r'"(\w+/[\w/]+\.(?:tif|h5))"', code)[-2:]
    with opened(source) as image, rasterio.open(target) as found:
        assert image.shape == found.shape and set(np.unique(found.read())) <= {0, 1, NO_CLASS}
    assert known["model"].reading["names"] == known["data"].train.how.names


def test_an_hdf5_file_holds_one_array_with_channels_first_or_last(tmp_path):
    values = draw.uniform(size=(4, 8, 9))
    h5(tmp_path / "first.h5", img=values)
    h5(tmp_path / "last.h5", **{"group/img": np.moveaxis(values, 0, 2), "names": np.arange(4)})
    for name in ("first.h5", "last.h5"):
        np.testing.assert_array_equal(read_window(tmp_path / name, range(4), (0, 0, 8, 9)), values.astype("float32"))
    h5(tmp_path / "two.h5", img=values, mask=values[0])
    with pytest.raises(ValueError, match=r"two.h5 is not a readable HDF5 file.*\['img', 'mask'\], need one"):
        read_window(tmp_path / "two.h5", [0], (0, 0, 8, 9))


def test_patches_and_masks_lie_where_the_shapes_do(folders):
    with rasterio.open(folders / "scene/landsat.tif") as file:
        scene = (file.read() - 7272.7) * 2.75e-5
    data = on_scene(folders, labels=folders / "scene/points.geojson")
    assert [sample["label"] for sample in data] == [0, 1, 0, 1, 0, 1]
    np.testing.assert_allclose(data[1]["image"].numpy(), scene[:, 32:48, 142:158], rtol=1e-4)  # around (150, 40)
    np.testing.assert_allclose(data[0]["image"].numpy()[:, 3:, 3:], scene[:, :13, :13], rtol=1e-4)  # over the border
    expected = np.full((60, 200), -1)
    for i, (x, y) in enumerate(PLACES[:-1]):
        expected[y : y + 6, x : x + 6] = i % 2
    whole, tiles = (on_scene(folders, masks=folders / "scene/polygons.geojson", tile=tile) for tile in (None, 16))
    assert (whole[0]["mask"].numpy() == expected).mean() > 0.999  # degrees are rounded
    assert sum((tile["mask"] >= 0).sum() for tile in tiles) == (whole[0]["mask"] >= 0).sum()  # one lies on the border


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace('"crop"', '"corn"'), r"shapes.geojson: label 'corn'; classes are"),
        (lambda text: text.replace("[13.", "[43."), r"none of its 6 shapes lies on .*landsat.tif"),
        (lambda text: text.replace("[13.", "[43.", 1), r"1 of 6 shapes lie outside"),
        (lambda text: text.replace('"label"', '"kind"'), r"has columns .*'kind'.*need 'label'"),
        (lambda text: text[:50], r"no readable points or polygons"),
    ],
)
@pytest.mark.filterwarnings("error::UserWarning")
def test_shapes_that_do_not_fit_are_named(change, says, folders, tmp_path):
    (tmp_path / "shapes.geojson").write_text(change((folders / "scene/points.geojson").read_text()))
    with pytest.raises((ValueError, UserWarning), match=says):
        on_scene(folders, labels=tmp_path / "shapes.geojson")


def test_a_scene_needs_folds_for_its_parts_and_a_projection_for_shapes(folders):
    points = folders / "scene/points.geojson"
    with pytest.raises(ValueError, match="split= needs folds="):  # each part would have been the whole
        on_scene(folders, labels=points, split="train")
    with pytest.raises(ValueError, match=r"image_0.h5 names no projection"):
        from_folder(folders / "slides/img/image_0.h5", ("B02", "B03", "B04"), ("crop", "forest"), masks=points)
