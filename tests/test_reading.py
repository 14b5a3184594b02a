"""Files of one's own as numbers: what was silently wrong, and what is refused with the cure."""

import json
import re

import numpy as np
import pytest
import torch
from helpers import SAVANNA, adapted, tiny_vit
from rasterio.transform import from_origin
from test_folder import BANDS, CLASSES, chips, labelled, masked, write  # noqa: F401 (chips is a fixture)
from test_predict import undecided
from torch.utils.data import DataLoader

import peftlib as pl
from peftlib.data import EarthData, collate, from_folder
from peftlib.data.reading import Reading, read_window, reading_of
from peftlib.deflect.time_series import SeriesEMB, series_bands, stack
from peftlib.sensors.bands import band_set
from peftlib.training.fit import fit, quiet_trainer, restore
from peftlib.training.metrics import ClassScores
from peftlib.training.predict import predict_map
from peftlib.training.tasks import Segmentation

LANDSAT = dict(bands=("B2", "B3", "B4", "B5"), sensor="landsat8")


def numbers(path, low=0, high=2, size=(32, 32), channels=4, dtype="uint16", **options):
    values = np.random.default_rng(len(str(path))).integers(low, high, (channels, *size)).astype(dtype)
    write(path, values, **options)
    return values


def test_landsats_digital_numbers_are_no_reflectance(chips):  # noqa: F811
    for name in ("a", "b", "deep/c"):
        numbers(chips / "chips" / f"{name}.tif", 7000, 14000)
    white = r"most of RGB is above rgb_white=0.3.*scale=1/2.75e-5"
    with pytest.raises(ValueError, match=white):
        masked(chips, **LANDSAT)[0]
    assert re.search(f"refused: .*{white}", masked(chips, **LANDSAT).summary())
    data = masked(chips, **LANDSAT, scale=1 / 2.75e-5, offset=-0.2 / 2.75e-5)
    low, high = data[0]["image"].aminmax()
    assert -0.008 < low < high < 0.186
    assert masked(chips, **LANDSAT, rgb_white=1.5)[0]["image"].mean() > 0.7  # as for snow


def test_scale_and_offset_of_each_band_extra_channels_and_the_channels_of_a_file(chips):  # noqa: F811
    for name in ("a", "b", "deep/c"):
        values = numbers(chips / "chips" / f"{name}.tif", 300, 2000, channels=7)
    options = dict(channels=(1, 2, 3, 6, 0), extra=("slope",), odd="error")
    data = masked(chips, scale=[1e4, 2e4, 1e4, 1e4, 1], offset=[0, 0, -100, 0, 0], **options)
    scale, offset = (np.array(v)[:, None, None] for v in ([1e4, 2e4, 1e4, 1e4, 1], [0, 0, -100, 0, 0]))
    expected = (values[[1, 2, 3, 6, 0]] + offset) / scale
    np.testing.assert_allclose(data[2]["image"].numpy(), expected, rtol=1e-6)
    for method, input in ((pl.Deflect(), None), (pl.LoRA(), pl.Inflated())):
        model = pl.adapt(tiny_vit(), method, data.bands, data.sensor, input=input)
        model.fit_normalization(DataLoader(data, 3, collate_fn=collate))
        assert model.reflectance.mean.flatten()[-1] > 300 and torch.isfinite(model(data[0]["image"][None])).all()
    with pytest.raises(ValueError, match=r"cannot read \['slope'\]"):
        pl.adapt(tiny_vit(), pl.Deflect(), data.bands, data.sensor, input=pl.EMB(spectral="wavelengths"))
    pl.save_adapter(model, chips / "a.safetensors")
    again = pl.load_adapter(tiny_vit(), chips / "a.safetensors")
    torch.testing.assert_close(again(data[0]["image"][None]), model(data[0]["image"][None]), rtol=0, atol=0)
    assert again.reading == json.loads(json.dumps(data.reading)) and again.reading["channels"] == [1, 2, 3, 6, 0]


@pytest.mark.parametrize("name", ["standardised", "divided by mean"])
def test_standardised_values_become_reflectance_again(name, chips):  # noqa: F811
    mean, std = (v.view(-1, 1, 1).numpy() for v in band_set(BANDS).statistics())
    true = np.random.default_rng(0).uniform(0.02, 0.2, (4, 32, 32)).astype("float32")
    stored = (true - mean) / std if name == "standardised" else true / mean
    for file in ("a", "b", "deep/c"):
        write(chips / "chips" / f"{file}.tif", stored.astype("float32"))
    np.testing.assert_allclose(masked(chips, scale=name)[0]["image"].numpy(), true, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"outside|most of RGB"):
        masked(chips, scale=1.0)[0]


def test_maps_are_read_as_training_was(chips, tmp_path):  # noqa: F811
    """Adapter and checkpoint keep scale, offset, fill and tile; a map with another scale was written in silence."""
    own = dict(scale=15_000, offset=-100, tile=16, channels=(3, 2, 1, 0), fill=0)
    data = masked(chips, **own)
    model = adapted(pl.LoRA(), SAVANNA, nodata="zero").fit_normalization(DataLoader(data, 4, collate_fn=collate))
    task = Segmentation(model, CLASSES)
    fit(task, EarthData(data, data, batch_size=4), tmp_path / "run", steps=1)
    fresh = restore(Segmentation(adapted(pl.LoRA(), SAVANNA, nodata="zero"), CLASSES), tmp_path / "run" / "last.ckpt")
    pl.save_adapter(model, tmp_path / "a.safetensors")
    source, kept, named = chips / "chips" / "b.tif", tmp_path / "kept.tif", tmp_path / "named.tif"
    predict_map(fresh, source, kept)
    predict_map(fresh, source, named, bands=BANDS[::-1], scale=15_000, offset=-100, tile=16)
    assert kept.read_bytes() == named.read_bytes() and fresh.model.reading["size"] == (16, 16)
    with pytest.warns(UserWarning, match=r"scale=10000.0; the model was trained on files with \[15000"):
        predict_map(fresh, source, tmp_path / "other.tif", scale=1e4)
    assert pl.load_adapter(tiny_vit(), tmp_path / "a.safetensors").reading["fill"] == [0]
    sample = data[4]  # what the map reads is what training read
    again = Reading(**fresh.model.reading).image(source, (0, 0, 16, 16), band_set(SAVANNA))
    assert torch.equal(sample["image"], again)
    with pytest.raises(ValueError, match="keeps no reading"):
        reading_of({}, band_set(SAVANNA), scale=None, offset=None)


@pytest.mark.parametrize("size", [(45, 70), (10, 64), (32, 32)])
def test_tiles_cover_every_pixel_and_what_is_beyond_does_not_count(size, chips):  # noqa: F811
    image = numbers(chips / "chips" / "a.tif", 300, 3000, size)
    truth = numbers(chips / "masks" / "a.tif", 0, 3, size, 1, "uint8")[0]
    data = masked(chips, tile=32)
    tiles = [data[i] for i, item in enumerate(data.items) if item.paths[0].name == "a.tif"]
    assert {tuple(tile["image"].shape[1:]) for tile in tiles} == {(32, 32)}
    known = [tile["mask"][tile["mask"] >= 0] for tile in tiles]
    assert torch.equal(torch.cat(known).bincount(), torch.from_numpy(truth).long().flatten().bincount())
    total = sum(float((tile["image"] * (tile["mask"] >= 0)).double().sum()) for tile in tiles)
    assert total == pytest.approx(image.sum() / 1e4, rel=1e-5)
    beyond = tiles[0]["image"][:, : size[0]]
    assert size[0] > 32 or torch.equal(tiles[0]["image"][:, size[0] : 2 * size[0]], beyond.flip(1)[:, : 32 - size[0]])


@pytest.mark.parametrize("decoder", ["linear", "unet"])
def test_maps_and_evaluation_of_tiles_agree_in_every_pixel(decoder, chips, tmp_path):  # noqa: F811
    truth = {}
    for name, size in {"a": (64, 96), "b": (20, 32), "deep/c": (32, 24)}.items():
        image = numbers(chips / f"chips/{name}.tif", 300, 5000, size)
        image[:, 4:12, 4:12] = 25_000  # glint: 6% of a tile, 2% of what a map reads at once
        image[0, 12:20, 5] = 0
        write(chips / f"chips/{name}.tif", image)
        truth[name] = numbers(chips / f"masks/{name}.tif", 0, 2, size, 1, "uint8")
    data = masked(chips, tile=32, fill=0, classes=("low", "high"))
    model = adapted(pl.Deflect(), SAVANNA, nodata="zero").fit_normalization(DataLoader(data, 8, collate_fn=collate))
    made = Segmentation(model, data.classes, decoder=decoder)
    task = undecided(made, torch.stack([sample["image"] for sample in data]))
    scores, every = ClassScores(task.classes, -1, True), EarthData(data, data, data, batch_size=8)
    (expected,) = quiet_trainer(accelerator="cpu").test(task, every, verbose=False)
    for name, mask in truth.items():
        predict_map(task, chips / f"chips/{name}.tif", tmp_path / "map.tif", overlap=0)
        made = read_window(tmp_path / "map.tif", [0], (0, 0, *mask.shape[1:]), 0)
        scores.update(*(torch.from_numpy(v.astype(int)) for v in (made, mask)))
    assert scores.confmat.min() > 0  # right and wrong pixels of both classes: one that changes changes a score
    assert scores.compute() == {name: value for name, value in expected.items() if name != "loss"}


def test_two_dates_from_files_to_a_map(chips, tmp_path):  # noqa: F811
    paths = [chips / f"chips/{year}/a.tif" for year in (2020, 2021)]
    first, _ = (numbers(path, 300 * i, 3000) for i, path in enumerate(paths, 1))
    dates = {"2020-09-14": "2020/{id}.tif", "2021-09-14": "2021/{id}.tif"}
    data = masked(chips, dates=dates, rgb_date=0)
    image = data[0]["image"][None]
    np.testing.assert_allclose(image[0, :3], first[[2, 1, 0]] / 1e4, rtol=1e-6)  # the last is the default
    assert torch.equal(image[0], stack(image[0, 3:].unflatten(0, (2, 7))[:, :4], (258, 623), BANDS, day="since", rgb=0))
    model = adapted(pl.Deflect(), data.bands, input=SeriesEMB()).fit_normalization(DataLoader(data, collate_fn=collate))
    task = undecided(Segmentation(model, ("low", "high")), image)
    predict_map(task, paths, tmp_path / "map.tif")
    made = read_window(tmp_path / "map.tif", [0], (0, 0, 32, 32), 0)
    assert np.array_equal(made, task(image).argmax(1)) and 0 < made.mean() < 1
    numbers(paths[1], 300, 3000, transform=from_origin(0, 0, 10, 10))
    with pytest.raises(ValueError, match=r"2021/a.tif lies elsewhere than .*2020/a.tif"):
        masked(chips, dates=dates)
    paths[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 2021/a.tif \(1 images in all\)"):
        masked(chips, dates=dates)


def test_odd_values_and_declared_holes(chips):  # noqa: F811
    image = numbers(chips / "chips" / "a.tif", 300, 3000)
    image[:, :8] = 25_000  # a quarter is snow
    write(chips / "chips" / "a.tif", image, nodata=int(image[0, 9, 9]))
    with pytest.warns(UserWarning, match=r"a.tif: values outside \(-0.2, 1.6\) .* clipped"):
        sample = masked(chips)[0]["image"]
    assert sample[:, :8].unique().tolist() == pytest.approx([1.6]) and sample[0, 9, 9].isnan()
    with pytest.raises(ValueError, match=r"a.tif: image lies in \[0.03"):
        masked(chips, odd="error")[0]
    report = masked(chips, odd="error").summary()
    assert "2 of 3 samples of (32, 32)" in report and "refused" in report and "98%" in report and "water 3" in report


def test_masks_by_pattern_with_values_of_their_own(chips):  # noqa: F811
    for name in "ab":
        value = numbers(path := chips / f"chips/m/{name}_truth.png", channels=1, dtype="uint8", driver="PNG")
        write(path, value * 200, driver="PNG")
    (chips / "chips/deep/c.tif").unlink()
    options = dict(masks="m/{id}_truth.png", classes=("land", "water"))
    data = masked(chips, mask_values={200: "water", 0: "land"}, **options)
    assert torch.equal(data[1]["mask"], torch.from_numpy(value[0]).long())
    with pytest.raises(ValueError, match=r"a_truth.png: mask holds \[200\], .* known: name them in mask_values="):
        masked(chips, **options)[0]
    unknown = masked(chips, mask_values={200: "water", 0: None, 9: "land"}, **options)[0]["mask"]
    assert unknown.unique().tolist() == [-1, 1]


def test_folds_keep_neighbours_together_and_others_apart(tmp_path):
    draw = np.random.default_rng(1)
    corners = [(500_000 + 3000 * draw.integers(0, 40), 5_500_000 + 3000 * draw.integers(0, 40)) for _ in range(30)]
    for i, corner in enumerate(corners):
        numbers(tmp_path / f"i/{i}.tif", 300, 3000, transform=from_origin(*corner, 30, 30))
        numbers(tmp_path / f"m/{i}.tif", 0, 2, channels=1, dtype="uint8")
    own = dict(folder=tmp_path / "i", masks=tmp_path / "m", bands=BANDS, classes=("low", "high"), folds=3, apart=2500)
    folds = [[int(item.paths[0].stem) for item in from_folder(**own, split=fold).items] for fold in range(3)]
    assert sorted(np.concatenate(folds).tolist()) == list(range(30)) and min(map(len, folds)) > 2
    fold = np.array([[i in part for part in folds] for i in range(30)]).argmax(1)
    gaps = (np.abs(np.subtract(corners, np.array(corners)[:, None])) - 32 * 30.0).clip(0)
    assert np.linalg.norm(gaps, axis=-1)[fold != fold[:, None]].min() > 2500
    with pytest.raises(ValueError, match=r"3 folds of images with 1 groups \(apart=1000000"):
        from_folder(**own | {"apart": 1e6}, split=0)


def test_one_season_of_two_years_is_told_apart():
    """Exchanging the years changed nothing that an encoder of a set could see."""
    images = 0.05 + 0.2 * torch.rand(2, 4, 32, 32)
    days = (258, 258 + 365.25)
    for day, differs in ((True, False), ("since", True)):
        bands = series_bands(BANDS, 2, day=day)
        model = adapted(pl.Deflect(), bands, input=SeriesEMB(order="set"))
        torch.nn.init.normal_(model.auxiliary.patch_mlp[-1].weight)
        a, b = (stack(x, days, BANDS, day=day, rgb=r)[None] for x, r in ((images, 1), (images.flip(0), 0)))
        assert torch.equal(a[:, :3], b[:, :3]) and a.shape[1] == len(bands)
        assert torch.allclose(model(a), model(b), atol=1e-3 if differs else 1e-5) != differs
    assert torch.equal(stack(images, days, BANDS, rgb=0)[:3], images[0, [2, 1, 0]])


def resized(chips, folder, size=(32, 40), channels=4):  # noqa: F811
    numbers(chips / folder / "b.tif", 0, 2, size, channels)
    return masked(chips)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda c: (c / "chips/b.tif").write_text("no image") and masked(c), r"b.tif is not a readable GeoTIFF"),
        (lambda c: resized(c, "masks", channels=1), r"b.tif: 1 bands of \(32, 40\) pixels; a mask has 1 of \(32, 32\)"),
        (lambda c: resized(c, "masks", (32, 32), 3), r"masks/b.tif: 3 bands of \(32, 32\)"),
        (lambda c: resized(c, "chips", (32, 32), 7), r"b.tif has 7 bands, and 4 are named; channels=range\(4\), say"),
        (lambda c: masked(c, channels=(0, 1, 2, 4)), r"a.tif has no channel 4, only 0 to 3"),
        (lambda c: masked(c, channels=(0, 1, 2)), r"channels=\(0, 1, 2\); give another number"),
        (lambda c: masked(c, scale=[1e4, 1e4]), r"scale=\[10000.0, 10000.0\]; give one number, or one for each"),
        (lambda c: masked(c, offset=[1, 2, 3, 4, 5]), r"offset=.*one for each of \('B02'"),
        (lambda c: masked(c, scale="standard"), r"scale='standard'; .*standardised"),
        (lambda c: masked(c, mask_values={0: "forest", 1: "sea"}), r"mask_values: label 'sea'; classes are"),
        (lambda c: masked(c, mask_values={0: "forest", 1: "field"}), r"has nothing for the classes \['water'\]"),
        (lambda c: masked(c, images="s2_*.tif"), r"pattern 's2_\*.tif'; it needs \{id\}"),
        (lambda c: labelled(c, splits=c / "labels.csv", split="x"), r"nothing for split 'x'; there are \['test'"),
        (lambda c: masked(c, folds=3), r"folds=3, split=None"),
        (lambda c: masked(c, folds=4, split=0), r"4 folds of images with 3 groups"),
        (lambda c: masked(c, tile=0), r"tile=0"),
        (lambda c: masked(c, dates={"2020-05-01": "{id}.tif"}, rgb_date=1), r"rgb_date=1; give 'best', or"),
        (lambda c: masked(c, dates={"May": "{id}.tif"}), r"Invalid isoformat string: 'May'"),
    ],
)  # fmt: skip
def test_bad_input_is_named_with_its_cure(make, says, chips):  # noqa: F811
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        make(chips)


def test_several_sizes_ask_for_tiles(chips):  # noqa: F811
    numbers(chips / "masks" / "b.tif", 0, 2, (20, 40), 1)
    numbers(chips / "chips" / "b.tif", 300, 3000, (20, 40))
    with pytest.raises(ValueError, match=r"images of \(20, 40\) to \(32, 32\) pixels; cut them: tile=64"):
        masked(chips)
    sample = labelled(chips, tile=24)[1]["image"]  # the middle, continued where it is too small
    assert sample.shape == (4, 24, 24) and torch.equal(sample[:, 0], sample[:, 3])
