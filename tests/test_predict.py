"""Class maps of GeoTIFFs: where they lie, how tiles join, what is refused, and resuming."""

import numpy as np
import pytest
import rasterio
import torch
from helpers import SAVANNA, adapted
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import from_origin
from toy_data import classification, segmentation

import peftlib as pl
from peftlib.training.predict import NO_CLASS, TiledPredictor, predict_folder, tile_offsets
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
    path.parent.mkdir(exist_ok=True)
    values = np.random.default_rng(seed).integers(200, 5000, (bands, *size)).astype(dtype)
    values[:, : size[0] // 2] //= 3
    if holes is not None:
        values[holes] = options.get("nodata") or 0
    facts = dict(driver="GTiff", count=bands, height=size[0], width=size[1], dtype=dtype) | WHERE | options
    with rasterio.open(path, "w", **facts) as file:
        file.write(values)
    return values


def read(path):
    with rasterio.open(path) as file:
        return file.read(1), file.profile, file.tags()


def predict(task, tmp_path, **options):
    return predict_folder(task, tmp_path / "images", tmp_path / "maps", FILE_BANDS, progress=False, **options)


def again(task, tmp_path, **options) -> np.ndarray:
    """The map of the one image, made anew."""
    (tmp_path / "maps" / "a.tif").unlink(missing_ok=True)
    return read(predict(task, tmp_path, **options)[0])[0]


def probabilities(task, values, scale=1e4) -> np.ndarray:
    """What the task says to one image of its size: (classes, H, W)."""
    x = torch.from_numpy(values[PICKED].astype(np.float32) / np.float32(scale))[None]
    with torch.no_grad():
        return task(x).softmax(1)[0].numpy()


# --- maps ---


def test_a_map_is_what_the_task_says_in_the_place_of_the_image(task, tmp_path):
    values = write(tmp_path / "images" / "a.tif")
    done = predict(task, tmp_path)
    assert done == [tmp_path / "maps" / "a.tif"]
    classes, profile, tags = read(done[0])
    assert np.array_equal(classes, probabilities(task, values).argmax(0)) and set(np.unique(classes)) == {0, 1}
    assert profile["crs"] == WHERE["crs"] and profile["transform"] == WHERE["transform"]
    assert (profile["dtype"], profile["count"], profile["nodata"]) == ("uint8", 1, NO_CLASS)
    assert tags["classes"] == "low, high"


def by_hand(task, values, overlap, tile=32) -> np.ndarray:
    """All tiles into one sum, with weights written out."""
    _, H, W = values.shape
    ramp = np.minimum(np.arange(tile) + 0.5, tile - np.arange(tile) - 0.5)
    total = np.zeros((2, H, W))
    for top in tile_offsets(H, tile, overlap):
        for left in tile_offsets(W, tile, overlap):
            window = (slice(None), slice(top, top + tile), slice(left, left + tile))
            total[window] += np.outer(ramp, ramp) * probabilities(task, values[window])
    return total.argmax(0)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("size", [(75, 101), (32, 50), (40, 32)])
def test_overlapping_tiles_are_blended(task, size, overlap, tmp_path):
    values = write(tmp_path / "images" / "a.tif", size)
    (path,) = predict(task, tmp_path, overlap=overlap, batch_size=3)
    classes = read(path)[0]
    assert classes.shape == size
    assert (classes != by_hand(task, values, overlap)).mean() < 1e-3  # ties within rounding


def test_overlap_changes_the_map(task, tmp_path):
    write(tmp_path / "images" / "a.tif", (75, 101))
    assert not np.array_equal(*(again(task, tmp_path, overlap=overlap) for overlap in (0.0, 0.5)))


@pytest.mark.parametrize("size", [(20, 25), (5, 40), (32, 7), (1, 1)])
def test_small_images_are_continued_by_their_mirror(task, size, tmp_path):
    values = write(tmp_path / "images" / "a.tif", size)
    (path,) = predict(task, tmp_path)
    padded = np.pad(values, ((0, 0), *((0, max(0, 32 - side)) for side in size)), mode="symmetric")
    assert (read(path)[0] != by_hand(task, padded, 0.25)[: size[0], : size[1]]).mean() < 1e-2


def test_a_tile_of_the_training_images_size_is_enlarged(task, tmp_path):
    """A model of 32 px that was trained on images of 16 px, enlarged."""
    values = write(tmp_path / "images" / "a.tif", (16, 16))
    (path,) = predict(task, tmp_path, tile=16)
    x = torch.from_numpy(values[PICKED].astype(np.float32) / 1e4)[None]
    with torch.no_grad():
        logits = task(torch.nn.functional.interpolate(x, (32, 32), mode="bilinear")).softmax(1)
    expected = torch.nn.functional.interpolate(logits, (16, 16), mode="bilinear", antialias=True).argmax(1)[0]
    assert (read(path)[0] != expected.numpy()).mean() < 1e-2


@pytest.mark.parametrize("options", [dict(scale=5000.0), dict(offset=-150.0)])
def test_scale_and_offset_change_the_map(options, task, tmp_path):
    write(tmp_path / "images" / "a.tif")
    assert not np.array_equal(again(task, tmp_path), again(task, tmp_path, **options))


def test_values_are_read_by_name_scale_and_offset(task, tmp_path):
    values = write(tmp_path / "images" / "a.tif")
    predictor = TiledPredictor(task, FILE_BANDS, scale=5e3, offset=-100.0)
    with rasterio.open(tmp_path / "images" / "a.tif") as image:
        strip = predictor.read(image, 0).numpy()
    np.testing.assert_allclose(strip, (values[PICKED].astype(float) - 100) / 5e3, rtol=1e-6)


def test_the_task_is_put_into_eval_mode(task, tmp_path):
    write(tmp_path / "images" / "a.tif")
    task.train()
    predict(task, tmp_path)
    assert not any(part.training for part in task.model.modules()) and not task.decoder.training


# --- places without data ---


def test_pixels_without_data_have_no_class(tmp_path):
    tolerant = Segmentation(adapted(pl.LoRA(), SAVANNA, nodata="zero"), 2)
    holes = np.s_[:, 10:15, 20:60]
    write(tmp_path / "images" / "declared.tif", (48, 70), holes=holes, nodata=65535)
    write(tmp_path / "images" / "told.tif", (48, 70), holes=holes)
    write(tmp_path / "images" / "one_band.tif", (48, 70), holes=np.s_[:1, 10:15, 20:60])
    done = predict(tolerant, tmp_path, fill=0)
    maps = {path.stem: read(path)[0] for path in done}
    for name in ("declared", "told"):
        assert (maps[name][10:15, 20:60] == NO_CLASS).all() and (maps[name] == NO_CLASS).sum() == 5 * 40
    assert not (maps["one_band"] == NO_CLASS).any()  # the other bands still say something


def test_a_model_that_refuses_missing_pixels_says_so(task, tmp_path):
    write(tmp_path / "images" / "a.tif", holes=np.s_[:, :3], nodata=65535)
    with pytest.warns(UserWarning, match=r"no map of 1 of 1 images: a.tif: .*nodata='zero'"):
        assert predict(task, tmp_path) == []
    assert not list((tmp_path / "maps").glob("*"))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_an_image_without_a_place(task, tmp_path):
    write(tmp_path / "images" / "bare.TIFF", crs=None, transform=None)
    (bare,) = predict(task, tmp_path)
    assert bare.name == "bare.TIFF" and read(bare)[1]["crs"] is None


# --- a whole folder ---


def test_one_bad_file_does_not_stop_the_others(task, tmp_path):
    folder = tmp_path / "images"
    for name in "abcde":
        write(folder / f"{name}.tif", (64, 64), seed=ord(name))
    (folder / "b.tif").write_bytes((folder / "b.tif").read_bytes()[:9000])
    (folder / "c.tif").write_text("no image")
    write(folder / "d.tif", bands=3)
    (folder / "notes.txt").write_text("no image either")
    (folder / ".hidden.tif").write_text("nor this")
    with pytest.warns(
        UserWarning, match=r"no map of 3 of 5 images: b.tif: .*c.tif: .*d.tif: it has 3 bands, and 5 are"
    ):
        done = predict(task, tmp_path)
    assert [p.name for p in done] == ["a.tif", "e.tif"]
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == ["a.tif", "e.tif"]


def test_digital_numbers_taken_for_reflectance_are_refused(task, tmp_path):
    write(tmp_path / "images" / "a.tif")
    with pytest.warns(UserWarning, match="a.tif: image lies in .*Digital numbers"):
        assert predict(task, tmp_path, scale=1.0) == []


def test_a_stopped_run_resumes(task, tmp_path, monkeypatch):
    for name in "abc":
        write(tmp_path / "images" / f"{name}.tif", (64, 64))
    blocks = TiledPredictor.row_blocks

    def stopped(self, image):
        for top, classes in blocks(self, image):
            if "b.tif" in image.name and top > 0:
                raise KeyboardInterrupt
            yield top, classes

    monkeypatch.setattr(TiledPredictor, "row_blocks", stopped)
    with pytest.raises(KeyboardInterrupt):
        predict(task, tmp_path)
    assert [p.name for p in (tmp_path / "maps").iterdir()] == ["a.tif"]
    monkeypatch.undo()
    stamp = (tmp_path / "maps" / "a.tif").stat().st_mtime_ns
    assert [p.name for p in predict(task, tmp_path)] == ["b.tif", "c.tif"]
    assert (tmp_path / "maps" / "a.tif").stat().st_mtime_ns == stamp
    assert predict(task, tmp_path) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(bands=("B08", "B04", "B03")), r"missing: \['B02'\]"),
        (dict(bands=(*FILE_BANDS, "B08")), "each once"),
        (dict(scale=0), "scale=0"),
        (dict(overlap=1.0), r"overlap=1\.0"),
        (dict(tile=0), r"tile=0"),
        (dict(batch_size=0), r"batch_size=0"),
        (dict(out="images"), "replace them"),
        (dict(task=classification), "need a Segmentation task, got Classification"),
    ],
)
def test_impossible_arguments_are_refused_before_any_file(options, says, task, tmp_path):
    write(tmp_path / "images" / "a.tif")
    settings = dict(out="maps", bands=FILE_BANDS, task=lambda: task) | options
    made, out = settings.pop("task")(), tmp_path / settings.pop("out")
    with pytest.raises(ValueError, match=says):
        predict_folder(made, tmp_path / "images", out, **settings)


def test_an_empty_folder_is_named(task, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .tif or .tiff in .*images"):
        predict(task, tmp_path)


# --- tiles ---


@given(length=st.integers(1, 300), tile=st.integers(1, 64), overlap=st.floats(0, 0.9))
def test_tiles_cover_everything_and_overlap_enough(length, tile, overlap):
    found = tile_offsets(length, tile, overlap)
    assert found[0] == 0 and found == sorted(set(found))
    if length <= tile:
        assert found == [0]
        return
    steps = np.diff(found)
    assert found[-1] == length - tile and len(steps) and steps.max() <= max(1, int(tile * (1 - overlap)))
    assert steps.max() - steps.min() <= 1
