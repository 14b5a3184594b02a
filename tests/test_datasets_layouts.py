"""What single data sets have of their own: splits, other layouts, odd names, values without data."""

import numpy as np
import pytest
import torch
from archives import (
    NO_PLACE,
    SIZE,
    burn_scars,
    calfire,
    eurosat,
    mados,
    marida_crops,
    water,
    write_text,
    write_tif,
)

from peftlib.data import DATASETS, load
from peftlib.data.readers.marida import TEST_SCENES, VAL_SCENES
from peftlib.data.subsets import Concat, folds


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(DATASETS["calfire"], "tile", SIZE)


def stems(dataset) -> list[str]:
    return [(item[0] if isinstance(item, tuple) else item).stem for item in dataset.items]


# --- EuroSAT ---------------------------------------------------------------------------------------------------------


def test_eurosats_lists_are_torchgeos(tmp_path):
    archive = eurosat(tmp_path)
    write_text(tmp_path / "eurosat-val.txt", "River_1.jpg", "SeaLake_2.tif", "")
    assert stems(archive.load()) == ["Forest_7"]
    assert stems(archive.load(split="val")) == ["River_1", "SeaLake_2"]


def test_eurosat_in_folders_of_classes(tmp_path):
    """The layout of small subsets: no lists, no val."""
    for path in ("train/Forest/Forest_2.tif", "train/AnnualCrop/AnnualCrop_1.tif", "test/River/River_9.tif"):
        write_tif(tmp_path / path, np.full((13, SIZE, SIZE), 1500, np.uint16))
    train = load("eurosat", root=tmp_path)
    assert stems(train) == ["AnnualCrop_1", "Forest_2"] and [s["label"] for s in train] == [0, 1]
    assert [s["label"] for s in load("eurosat", root=tmp_path, split="test")] == [8]
    with pytest.raises(FileNotFoundError, match="'val'"):
        load("eurosat", root=tmp_path, split="val")
    write_tif(tmp_path / "train/Lake/Lake_1.tif", np.full((13, SIZE, SIZE), 1500, np.uint16))
    with pytest.raises(ValueError, match="'Lake' is no class"):
        load("eurosat", root=tmp_path)


def test_eurosats_last_band_is_b8a(tmp_path):
    archive = eurosat(tmp_path)
    write_tif(archive.files[0], np.tile(np.arange(13, dtype=np.uint16)[:, None, None], (1, SIZE, SIZE)) + 1000)
    bands = ("B8A", "B09", "B04", "B03", "B02")
    assert (archive.load(bands=bands)[0]["image"][:, 0, 0] * 1e4).round().tolist() == [1012, 1008, 1003, 1002, 1001]


# --- burn scars ------------------------------------------------------------------------------------------------------


def test_fill_values_of_hls_are_no_data(tmp_path):
    archive = burn_scars(tmp_path)
    archive.image[0, 0, 0], archive.image[5, 1, 1] = -9999, 9999
    archive.store(archive.image)
    image = archive.load()[0]["image"]
    assert torch.isnan(image).nonzero().tolist() == [[0, 0, 0], [5, 1, 1]]


# --- MADOS -----------------------------------------------------------------------------------------------------------


def test_mados_knows_bands_of_both_satellites(tmp_path):
    archive = mados(tmp_path)
    nm = {"442": 443, "559": 560, "739": 740, "780": 783, "864": 865, "1610": 1614, "2186": 2202}
    for path in archive.files:
        other = next((str(v) for k, v in nm.items() if f"_{k}_" in path.name), None)
        if other:
            path.rename(path.with_name(path.name.replace(f"_{path.stem.split('_')[-2]}_", f"_{other}_")))
    np.testing.assert_allclose(archive.load()[0]["image"], archive.image, rtol=1e-5)


def test_a_band_on_a_grid_that_does_not_fit_is_refused(tmp_path):
    archive = mados(tmp_path)
    write_tif(archive.files[4], np.full((5, 5), 0.1, np.float32), NO_PLACE)
    with pytest.raises(ValueError, match="need one band whose grid fits") as refused:
        archive.load()[0]
    assert str(archive.files[4]) in str(refused.value)


# --- MARIDA ----------------------------------------------------------------------------------------------------------


def test_marida_without_lists_is_split_by_scene(tmp_path):
    archive = marida_crops(tmp_path)
    for scene in (*VAL_SCENES, *TEST_SCENES, "S2_1-1-20_99XXX"):
        for n in (0, 10):
            (tmp_path / "images" / f"{scene}_{n}.tif").write_bytes(archive.files[0].read_bytes())
    scenes = {s: {stem.rsplit("_", 1)[0] for stem in stems(archive.load(split=s))} for s in ("train", "val", "test")}
    assert scenes == {
        "train": {"S2_12-12-20_16PCC", "S2_1-1-20_99XXX"},
        "val": set(VAL_SCENES),
        "test": set(TEST_SCENES),
    }


def test_integers_of_marida_have_their_own_no_data(tmp_path):
    archive = marida_crops(tmp_path)
    values = (archive.image * 1e4).round().astype(np.int16)
    values[:, 0, 0], values[2, 1, 1] = -32768, -5
    write_tif(archive.files[0], values)
    image = archive.load()[0]["image"]
    assert torch.isnan(image).any(0).nonzero().tolist() == [[0, 0]]
    assert image[2, 1, 1] == pytest.approx(-5e-4)


# --- water, CalFire --------------------------------------------------------------------------------------------------


def test_water_is_cut_once_and_for_all(tmp_path):
    archive = water(tmp_path)
    for n in range(1, 20):
        for path in (archive.files[0], archive.mask):
            path.with_name(f"{n}{path.suffix}").write_bytes(path.read_bytes())
    parts = {split: stems(archive.load(split=split)) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 12, "val": 4, "test": 4}
    assert sorted((*parts["train"], *parts["val"], *parts["test"]), key=int) == [str(n) for n in range(20)]
    assert parts["train"] == stems(archive.load()) != [str(n) for n in range(12)]


def test_fires_of_any_size_become_tiles_by_fold(tmp_path):
    archive = calfire(tmp_path)
    image = np.arange(5 * 20 * 13, dtype=np.uint16).reshape(5, 20, 13) + 100
    mask = (np.arange(20 * 13).reshape(20, 13) % 2).astype(np.uint8)
    mask[0, 0] = 255
    for name, fold in (("A_20210101", 4), ("B_20220202", 3)):
        write_tif(tmp_path / "images" / f"{name}.tif", image)
        write_tif(tmp_path / "masks" / f"{name}.tif", mask)
        with archive.listed.open("a") as file:
            file.write(f"{name},20,13,{fold},no\n")
    assert [len(archive.load(split=split)) for split in ("train", "val", "test")] == [1, 4, 4]
    tiles = list(archive.load(split="test"))
    assert {tile["image"].shape for tile in tiles} == {(5, 12, 12)} and tiles[0]["meta"]["fold"] == 4
    np.testing.assert_allclose(tiles[0]["image"], image[:, :12, :12] / 1e4, rtol=1e-6)
    last = tiles[3]
    np.testing.assert_allclose(last["image"][:, :8, :1], image[:, 12:, 12:] / 1e4, rtol=1e-6)
    assert last["image"][:, 8:].isnan().all() and last["image"][:, :, 1:].isnan().all()
    assert last["mask"][:8, :1].tolist() == mask[12:, 12:].tolist() and (last["mask"][8:] == -1).all()
    assert tiles[0]["mask"][0, 0] == -1 and sum(int((tile["mask"] >= 0).sum()) for tile in tiles) == 20 * 13 - 1
    whole = Concat([archive.load(split=split) for split in ("train", "val", "test")])
    assert {len({whole[i]["meta"]["fold"] for i in part}) for part in folds(whole, 3)} == {1}


def test_a_table_of_fires_that_does_not_fit_is_refused(tmp_path):
    archive = calfire(tmp_path)
    archive.listed.write_text("name,height,width,fold\nLNU_20200817,30,12,0\n")
    with pytest.raises(ValueError, match=r"image of \(12, 12\), less than index\.csv says"):
        archive.load()[1]
    for text in ("name,height\nA,1\n", "name,height,width,fold\nA,1,1,first\n"):
        archive.listed.write_text(text)
        with pytest.raises(ValueError, match=r"index\.csv is not a table with"):
            archive.load()


def test_dates_come_from_names(tmp_path):
    for archive in (burn_scars(tmp_path / "a"), marida_crops(tmp_path / "b")):
        dataset = archive.load()
        for path in dataset.files(dataset.items[0]):
            path.rename(path.with_name(path.name.replace("2018190", "july").replace("12-12-20", "december")))
        if archive.listed:
            archive.listed.write_text("july")
        with pytest.raises(ValueError, match="no date in the name"):
            archive.load()[0]
