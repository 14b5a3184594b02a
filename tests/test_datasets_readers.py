"""Every reader on a tiny archive of its published layout: values, bands, labels, meta, and what it refuses."""

import numpy as np
import pytest
import torch
from archives import ARCHIVES, SIZE, write_tif

from peftlib.data import DATASETS
from peftlib.sensors.bands import band_set


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(DATASETS["calfire"], "tile", SIZE)


@pytest.fixture(params=ARCHIVES)
def archive(request, tmp_path):
    return ARCHIVES[request.param](tmp_path / "data")


@pytest.fixture(params=[name for name in ARCHIVES if name not in ("so2sat", "brick_kiln", "forestnet", "eurosat")])
def masked(request, tmp_path):
    return ARCHIVES[request.param](tmp_path / "data")


def test_every_data_set_has_an_archive(tmp_path):
    made = {make(tmp_path / name).name for name, make in ARCHIVES.items()}
    read_from_files = {name for name, cls in DATASETS.items() if cls.__module__.startswith("peftlib.data.readers")}
    assert made == read_from_files and len(made) == 9


def test_a_sample_is_what_the_publisher_stored(archive):
    dataset = archive.load()
    cls = DATASETS[archive.name]
    assert len(dataset) == 1
    sample = dataset[0]
    image = sample["image"]
    assert image.dtype == torch.float32 and image.shape == (len(cls.all_bands), SIZE, SIZE)
    np.testing.assert_allclose(image, archive.image, rtol=1e-5)
    assert sample["bands"] == cls.all_bands and sample["sensor"] == cls.sensor
    meta = sample["meta"]
    assert meta["gsd"] == cls.gsd and str(archive.root) in meta["source"]
    for key, value in archive.meta.items():
        assert meta[key] == (pytest.approx(value, abs=1e-5) if key == "location" else value)
    assert set(meta) == {"gsd", "source", *archive.meta} | ({"location"} & set(meta))
    # What a key hashes; then labels and masks as class numbers.
    assert {*archive.files, *([archive.mask] if archive.mask else [])} <= set(dataset.files(dataset.items[0]))
    if archive.mask is not None:
        assert sample["mask"].dtype == torch.int64
        np.testing.assert_array_equal(sample["mask"], archive.truth)
    else:
        assert sample["label"] == archive.truth


def test_bands_are_chosen_and_ordered_by_name(archive):
    cls = DATASETS[archive.name]
    whole = archive.load()[0]["image"]
    other = next(band for band in reversed(cls.all_bands) if band not in rgb_of(cls))
    for bands in (rgb_of(cls), (other, *rgb_of(cls)), cls.all_bands[::-1]):
        sample = archive.load(bands=bands)[0]
        assert sample["bands"] == bands
        for i, band in enumerate(bands):
            torch.testing.assert_close(sample["image"][i], whole[cls.all_bands.index(band)])


def rgb_of(cls) -> tuple[str, ...]:
    bands = band_set(cls.all_bands, cls.sensor)
    return tuple(bands.names[i] for i in bands.rgb)


def test_wrong_options_are_refused(archive):
    for options, words in (
        (dict(split="training"), "no split 'training'"), (dict(bands=("B04", "B03", "B02", "B99")), "no bands"),
        (dict(bands=("B12",)), r"no bands|lack"), (dict(nodata="zero"), "nodata='zero'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            archive.load(**options)


def test_no_data_is_refused_or_given_as_nan(archive):
    archive.image[3, 0, 0] = np.nan
    archive.store(archive.image)
    with pytest.raises(ValueError, match="NaN") as refused:
        archive.load(nodata="error")[0]
    assert any(str(path.parent) in str(refused.value) for path in archive.files)
    image = archive.load(nodata="nan")[0]["image"]
    np.testing.assert_array_equal(torch.isnan(image), np.isnan(archive.image) | np.isnan(image.numpy()))
    assert torch.isnan(image[3, 0, 0]) and torch.isfinite(image).float().mean() > 0.9


def test_digital_numbers_are_refused(archive):
    archive.store(archive.image * 1e4)
    with pytest.raises(ValueError, match=r"Digital numbers|kelvin") as refused:
        archive.load()[0]
    assert any(str(path.parent) in str(refused.value) for path in archive.files)


def test_a_truncated_image_is_named(archive):
    path = archive.files[-1]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="truncated or damaged") as refused:
        archive.load()[0]
    assert str(path) in str(refused.value)


def test_a_missing_image_is_named(archive):
    path = archive.files[-1]
    path.unlink()
    with pytest.raises(FileNotFoundError) as missing:
        archive.load()[0]
    words = (path.name, f"'{DATASETS[archive.name].all_bands[-1]}'", "T10SEH.2018190.v1", "no images of the split")
    assert any(word in str(missing.value) for word in words)


@pytest.mark.parametrize("name", sorted(set(ARCHIVES) - {"marida_crops", "water"}))  # these two have no lists
def test_a_missing_list_is_named_with_its_source(name, tmp_path):
    archive = ARCHIVES[name](tmp_path)
    archive.listed.unlink()
    with pytest.raises(FileNotFoundError) as missing:
        archive.load()
    assert archive.listed.name in str(missing.value) and DATASETS[archive.name].source in str(missing.value)


# --- masks ---


def test_a_mask_that_does_not_fit_is_refused(masked):
    mask, path = masked.codes(masked.truth), masked.mask
    wrong = {r"mask of \(6, 12\) pixels, image of \(12, 12\)": mask[:6], "a mask has one band": np.stack([mask, mask])}
    if masked.name != "water":  # where all above 0 is water
        wrong["mask holds"] = np.where(np.arange(SIZE) == 2, 99, mask)
    for words, values in wrong.items():
        write_tif(path, values.astype(np.int16))
        with pytest.raises(ValueError, match=words) as refused:
            masked.load()[0]
        assert str(masked.root) in str(refused.value)
    path.write_bytes(b"II*\0 no picture")
    with pytest.raises(ValueError, match="damaged") as refused:
        masked.load()[0]
    assert str(path) in str(refused.value)
    path.unlink()
    with pytest.raises(FileNotFoundError) as missing:
        masked.load()[0]
    assert str(path) in str(missing.value)
