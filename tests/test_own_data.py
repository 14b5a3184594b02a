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

import peftlib as pl
from peftlib.data import from_folder
from peftlib.data.dataset import opened
from peftlib.training.predict import NO_CLASS

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "own_data.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
WHERE = {"crs": "EPSG:32633", "transform": from_origin(400_000, 5_800_000, 30, 30)}
draw = np.random.default_rng(0)


def write(path, channels, size, low=300, high=3000, dtype="uint16", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = dict(driver="PNG" if path.suffix == ".png" else "GTiff", count=channels, height=size[0], width=size[1])
    values = draw.integers(low, high, (channels, *size)).astype(dtype)
    with rasterio.open(
        path, "w", **facts | {"dtype": dtype} | ({} if path.suffix == ".png" else WHERE) | options
    ) as file:
        file.write(values)
    return values


def h5(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values


def geojson(path, shapes):
    """Shapes in the scene's pixels (column, row), as degrees."""
    from rasterio.warp import transform_geom

    features = []
    for kind, pixels, label in shapes:
        metres = (np.array(pixels) * (30, -30) + (400_000, 5_800_000)).tolist()
        where = transform_geom("EPSG:32633", "EPSG:4326", {"type": kind, "coordinates": metres})
        features.append({"type": "Feature", "geometry": where, "properties": {"label": label}})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def table(path, parts):
    path.write_text("\n".join(["file,split", *(f"{file},{part}" for file, part in parts)]))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Small folders of the kinds that the page names."""
    root = tmp_path_factory.mktemp("own")
    for i in range(6):
        write(root / f"water/images/{i}.tif", 12, (40, 40))
        mask = write(root / f"water/masks/mask_{i}.png", 1, (40, 40), 0, 2, "uint8")
        with rasterio.open(
            root / f"water/masks/mask_{i}.png", "w", driver="PNG", count=1, height=40, width=40, dtype="uint8"
        ) as f:
            f.write(mask * 255)
    table(root / "water/splits.csv", [(i, ("train", "train", "train", "val", "val", "test")[i]) for i in range(6)])
    for name, size in {"a": (97, 70), "b": (64, 64), "c": (40, 150), "d": (70, 90), "e": (66, 30)}.items():
        write(root / f"fires/images/{name}.tif", 5, size)
        write(root / f"fires/masks/{name}.tif", 1, size, 0, 2, "uint8")
    table(root / "fires/folds.csv", [(f"images/{name}.tif", i) for i, name in enumerate("abcde")])
    write(root / "scene/landsat.tif", 6, (60, 200), 8000, 14000)
    places = [(5, 5), (150, 40), (100, 20), (190, 55), (12, 50), (101, 30)]
    geojson(root / "scene/points.geojson", [("Point", at, ("crop", "forest")[i % 2]) for i, at in enumerate(places)])
    square = np.array([[0, 0], [6, 0], [6, 6], [0, 6], [0, 0]])
    shapes = [("Polygon", [square + at], ("crop", "forest")[i % 2]) for i, at in enumerate(places[:-1])]
    geojson(root / "scene/polygons.geojson", shapes)
    for name, size in {"a": (33, 50), "b": (40, 40), "c": (70, 33)}.items():
        for year in (2019, 2020):
            write(root / f"forest/{year}/{name}.tif", 4, size)
        write(root / f"forest/masks/{name}.tif", 1, size, 0, 2, "uint8")
    table(root / "forest/splits.csv", zip("abc", ("train", "val", "test"), strict=True))
    for i in range(6):
        h5(root / f"slides/img/image_{i}.h5", img=draw.uniform(0.3, 1.7, (32, 40, 14)))
        h5(root / f"slides/mask/mask_{i}.h5", mask=draw.integers(0, 2, (32, 40), dtype="uint8"))
    table(root / "slides/splits.csv", [(i, ("train", "train", "train", "val", "val", "test")[i]) for i in range(6)])
    for i in range(6):
        write(root / f"chips/{('Forest', 'River')[i % 2]}/{i}.tif", 4, (32, 32))
    parts = [(f"{('Forest', 'River')[i % 2]}/{i}.tif", ("train", "val", "test")[i // 2]) for i in range(6)]
    table(root / "chips/splits.csv", parts)
    return root


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
    h5(tmp_path / "two.h5", img=values, mask=values[0])
    for name in ("first.h5", "last.h5"):
        with opened(tmp_path / name) as file:
            np.testing.assert_array_equal(file.read(), values.astype("float32"))
    with (
        pytest.raises(ValueError, match=r"two.h5 is not a readable HDF5 file.*\['img', 'mask'\], need one"),
        opened(tmp_path / "two.h5"),
    ):
        pass


def test_patches_and_masks_lie_where_the_shapes_do(folders):
    own = dict(
        folder=folders / "scene/landsat.tif", classes=("crop", "forest"), scale=1 / 2.75e-5, offset=-7272.7, tile=16
    )
    own |= dict(bands=("B2", "B3", "B4", "B5", "B6", "B7"), sensor="landsat8")
    with rasterio.open(own["folder"]) as file:
        scene = (file.read() - 7272.7) * 2.75e-5
    data = from_folder(**own, labels=folders / "scene/points.geojson")
    assert [sample["label"] for sample in data] == [0, 1, 0, 1, 0, 1]
    np.testing.assert_allclose(data[1]["image"].numpy(), scene[:, 32:48, 142:158], rtol=1e-4)  # around (150, 40)
    np.testing.assert_allclose(data[0]["image"].numpy()[:, 3:, 3:], scene[:, :13, :13], rtol=1e-4)  # over the border
    data = from_folder(**own | {"tile": None}, masks=folders / "scene/polygons.geojson")
    expected = np.full((60, 200), -1)
    for i, (x, y) in enumerate(((5, 5), (150, 40), (100, 20), (190, 55), (12, 50))):
        expected[y : y + 6, x : x + 6] = i % 2
    assert (data[0]["mask"].numpy() == expected).mean() > 0.999  # degrees are rounded


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace('"crop"', '"corn"'), r"shapes.geojson: label 'corn'; classes are"),
        (lambda text: text.replace("[13.", "[43."), r"none of its 6 shapes lies on .*landsat.tif"),
        (lambda text: text.replace("[13.", "[43.", 1), None),
        (lambda text: text.replace('"label"', '"kind"'), r"has columns .*'kind'.*need 'label'"),
        (lambda text: text[:50], r"no readable points or polygons"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, says, folders, tmp_path):
    (tmp_path / "shapes.geojson").write_text(change((folders / "scene/points.geojson").read_text()))
    own = dict(folder=folders / "scene/landsat.tif", labels=tmp_path / "shapes.geojson", classes=("crop", "forest"))
    own |= dict(bands=("B2", "B3", "B4", "B5", "B6", "B7"), sensor="landsat8", tile=16)
    if says is None:
        with pytest.warns(UserWarning, match=r"1 of 6 shapes lie outside"):
            assert len(from_folder(**own)) == 5
        return
    with pytest.raises(ValueError, match=says):
        from_folder(**own)
    with pytest.raises(ValueError, match="split= needs folds="):  # each part would have been the whole
        from_folder(**own, split="train")
