"""Class maps of GeoTIFFs: where they lie, how tiles join, what is refused."""

from itertools import pairwise

import numpy as np
import pytest
import rasterio
import torch
from helpers import SAVANNA, adapted, images, randomise
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import from_origin
from test_folder import write as write_values
from toy_data import classification, segmentation

import peftlib as pl
from peftlib.deflect.time_series import SeriesEMB, series_bands, stack
from peftlib.training.predict import NO_CLASS, OVERLAP, predict_map, tiles
from peftlib.training.tasks import Segmentation

FILE_BANDS = ("B08", "B01", "B04", "B03", "B02")  # the model knows B02, B03, B04, B08
PICKED = [4, 3, 2, 0]
WHERE = {"crs": "EPSG:32633", "transform": from_origin(400_000, 5_800_000, 10, 10)}


@pytest.fixture(scope="module")
def task():
    made = segmentation().eval()
    with torch.no_grad():  # a fresh head hardly tells one place from another
        made.decoder.linear.weight.mul_(30)
    return made


def write(path, size=(32, 32), seed=0, dtype="uint16", bands=5, holes=None, **options):
    """Sentinel-2 as it is stored, values x 10000."""
    values = np.random.default_rng(seed).integers(200, 5000, (bands, *size)).astype(dtype)
    values[:, : size[0] // 2] //= 3
    if holes is not None:
        values[holes] = options.get("nodata") or 0
    write_values(path, values, **WHERE | options)
    return values


def read(path):
    with rasterio.open(path) as file:
        return file.read(1), file.profile, file.tags()


def predict(task, tmp_path, name="a.tif", **options):
    """The map of an image: classes, profile, tags."""
    target = tmp_path / "maps" / name
    predict_map(task, tmp_path / "images" / name, target, FILE_BANDS, **options)
    return read(target)


def probabilities(task, values, scale=1e4) -> np.ndarray:
    """What the task says to one image of its size: (classes, H, W)."""
    x = torch.from_numpy(values[PICKED].astype(np.float32) / np.float32(scale))[None]
    with torch.no_grad():
        return task(x).softmax(1)[0].numpy()


# --- maps ---


def test_a_map_is_what_the_task_says_in_the_place_of_the_image(task, tmp_path):
    values = write(tmp_path / "images" / "a.tif")
    classes, profile, tags = predict(task.train(), tmp_path, scale=5e3, offset=-100.0)
    assert not any(part.training for part in task.modules())
    expected = probabilities(task, values.astype(float) - 100, 5e3).argmax(0)
    assert np.array_equal(classes, expected) and set(np.unique(classes)) == {0, 1}
    assert profile["crs"] == WHERE["crs"] and profile["transform"] == WHERE["transform"]
    assert (profile["dtype"], profile["count"], profile["nodata"]) == ("uint8", 1, NO_CLASS)
    assert tags["classes"] == "low, high"


def by_hand(task, values, tile=32) -> np.ndarray:
    """Each pixel from the tile that holds it and whose middle is nearest."""
    _, H, W = values.shape
    tops, lefts = ([start for start, *_ in tiles(side, tile)] for side in (H, W))
    found = {(y, x): probabilities(task, values[:, y : y + tile, x : x + tile]) for y in tops for x in lefts}
    classes = np.zeros((H, W))
    for i, j in np.ndindex(H, W):
        y, x = (min(starts, key=lambda s: abs(s + tile / 2 - p - 0.5)) for p, starts in ((i, tops), (j, lefts)))
        classes[i, j] = found[y, x][:, i - y, j - x].argmax()
    return classes


@pytest.mark.parametrize("size", [(75, 101), (32, 50), (5, 40), (1, 1)])
def test_overlapping_tiles_are_cut_in_the_middle_and_small_images_continued_by_their_mirror(task, size, tmp_path):
    values = write(tmp_path / "images" / "a.tif", size)
    classes = predict(task, tmp_path)[0]
    padded = np.pad(values, ((0, 0), *((0, max(0, 32 - side)) for side in size)), mode="symmetric")
    assert classes.shape == size
    assert (classes != by_hand(task, padded)[: size[0], : size[1]]).mean() < 0.02  # pixels between two middles


def undecided(task, x):
    """Every parameter moved, and the last bias, so that x (B, C, H, W) holds pixels of both classes."""
    randomise(task, 0.1)
    with torch.no_grad():
        logits = task.eval()(x)
        list(task.decoder.parameters())[-1][0] += (logits[:, 1] - logits[:, 0]).mean()
    return task


def test_pixels_without_data_have_no_class_and_probabilities_are_a_band_a_class(tmp_path):
    tolerant = Segmentation(randomise(adapted(pl.LoRA(), SAVANNA, nodata="zero")), ("low", "high"))
    for name, bands in (("a.tif", 5), ("one_band.tif", 1)):
        write(tmp_path / "images" / name, (48, 70), holes=np.s_[:bands, 10:15, 20:60], nodata=65535)
    classes = predict(tolerant, tmp_path)[0]
    assert not (predict(tolerant, tmp_path, "one_band.tif")[0] == NO_CLASS).any()  # the other bands still say something
    predict(tolerant, tmp_path, probabilities=True)
    with rasterio.open(tmp_path / "maps" / "a.tif") as file:
        found, profile = file.read(), file.profile
    known = classes != NO_CLASS
    assert not known[10:15, 20:60].any() and (~known).sum() == 5 * 40
    assert profile["dtype"] == "float32" and np.isnan(profile["nodata"]) and np.isnan(found[:, ~known]).all()
    assert found.shape == (2, 48, 70) and np.allclose(found[:, known].sum(0), 1, atol=1e-6)
    assert np.array_equal(found.argmax(0)[known], classes[known])


# --- a time series, a file a date ---

DAYS = (100, 200)


def test_the_dates_of_a_series_are_stacked_in_each_tile(tmp_path):
    model = adapted(pl.Deflect(), series_bands(SAVANNA, 2), input=SeriesEMB(order="sequence"), nodata="zero")
    series_task = undecided(Segmentation(model, 2), stack(images(SAVANNA), DAYS, SAVANNA)[None])
    paths = [tmp_path / "images" / name for name in ("may.tif", "july.tif")]
    dates = np.stack([write(path, (32, 50), seed=i) for i, path in enumerate(paths)])[:, PICKED] / np.float32(1e4)
    expected, found = np.zeros((2, 32, 50)), []
    for left, first, last in tiles(50, 32):
        x = stack(torch.from_numpy(dates[..., left : left + 32]), DAYS, SAVANNA)[None]
        with torch.no_grad():
            expected[..., first:last] = series_task(x).softmax(1)[0][..., first - left : last - left]
    for order in (paths, paths[::-1]):
        predict_map(series_task, order, tmp_path / "map.tif", FILE_BANDS, days=DAYS, probabilities=True)
        with rasterio.open(tmp_path / "map.tif") as file:
            found.append(file.read())
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-5)
    assert abs(found[1] - expected).max() > 1e-3
    for files, days in ((paths[:1], DAYS), (paths, None)):
        with pytest.raises(ValueError, match=r"images with days=.*; this model reads 2 images and days"):
            predict_map(series_task, files, tmp_path / "map.tif", FILE_BANDS, days=days)


def test_a_classifiers_map_has_the_class_of_the_window_around_each_place(tmp_path):
    values = write(tmp_path / "images" / "a.tif", (70, 40))
    made = classification(pl.Frozen())
    with torch.no_grad():
        made.head.weight.mul_(30)
    classes = predict(made, tmp_path, overlap=0.5)[0]
    rows, columns = list(tiles(70, 32, 0.5)), list(tiles(40, 32, 0.5))
    assert len(rows) > 3
    for (top, *height), (left, *width) in ((row, column) for row in rows for column in columns):
        expected = probabilities(made, values[:, top : top + 32, left : left + 32]).argmax()
        assert (classes[height[0] : height[1], width[0] : width[1]] == expected).all()


# --- what is refused ---


def test_a_file_that_does_not_fit_leaves_no_map(task, tmp_path):
    folder = tmp_path / "images"
    for name in ("cut.tif", "text.tif"):
        write(folder / name, (64, 64))
    (folder / "cut.tif").write_bytes((folder / "cut.tif").read_bytes()[:9000])
    (folder / "text.tif").write_text("no image")
    write(folder / "few.tif", bands=3)
    write(folder / "holes.tif", holes=np.s_[:, :3], nodata=65535)
    words = {"cut": "", "text": "not recognized", "few": "3 bands, and 5 are", "holes": "nodata='zero'"}
    for name, says in words.items():
        with pytest.raises(ValueError, match=rf"{name}\.tif.*{says}"):
            predict(task, tmp_path, f"{name}.tif")
    assert not list((tmp_path / "maps").glob("*"))
    with pytest.raises(ValueError, match="would replace its image"):
        predict_map(task, folder / "few.tif", folder / "few.tif", FILE_BANDS)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(bands=("B08", "B04", "B03")), r"missing: \['B02'\]"),
        (dict(bands=(*FILE_BANDS, "B08")), "each once"),
        (dict(scale=0), "scale=0"),
        (dict(tile=0), r"tile=0"),
        (dict(days=(1,)), r"1 images with days=\(1,\); this model reads one image without days"),
        (dict(overlap=1.0), r"overlap=1.0"),
    ],
)
def test_impossible_arguments_are_refused_before_any_file(options, says, task):
    with pytest.raises(ValueError, match=says):
        predict_map(task, "a.tif", "b.tif", **dict(bands=FILE_BANDS) | options)


# --- tiles ---


@given(length=st.integers(1, 300), tile=st.integers(1, 64))
def test_tiles_cover_everything_and_overlap_enough(length, tile):
    starts, first, last = zip(*tiles(length, tile), strict=True)
    assert (first[0], last[-1]) == (0, length) and first[1:] == last[:-1] and starts[0] == 0
    assert all(s <= a < b <= s + tile for s, a, b in zip(starts, first, last, strict=True))
    assert len(starts) == 1 or starts[-1] == length - tile
    assert all(b - a <= max(1, int(tile * (1 - OVERLAP))) for a, b in pairwise(starts))
