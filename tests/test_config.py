"""Experiments: the key holds what decides a result and nothing else; the parts that train, validate and test."""

import json
import shutil
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from affine import Affine
from archives import write_tif
from toy_runs import forget, image_path, toy, write_eurosat

import peftlib as pl
from peftlib.data import DATASETS
from peftlib.experiments.config import Experiment

# Another value of each field that holds neither number nor truth value, and what a field needs beside it.
OTHER = {"dataset": "spectral_scenes", "method": pl.Frozen(), "input": pl.Inflated(), "data": {"longitudes": [0, 99]}}
OTHER |= {"bands": ("B04", "B03", "B02"), "folds": 3, "val_share": 0.25, "backbone": "test_vit2", "weights": "default"}
OTHER |= {"res": 10.0, "decoder": "unet", "schedule": "constant", "precision": "bf16-mixed", "init": 1}
OTHER |= {"role": "search", "metadata": ("date",), "unseen": {"longitudes": [0, 99]}}
NEEDS = {"train_tiles": {"tile": 4}, "fold": {"folds": 3}}


def other(run: Experiment, name: str) -> Experiment:
    """The same experiment with another value of one field."""
    value = getattr(run, name)
    if name not in OTHER:
        value = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value / 2
    return replace(run, **{name: OTHER.get(name, value)})


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The folder of the toy data, where this process looks for them."""
    monkeypatch.setenv("PEFTLIB_DATA", str(write_eurosat(tmp_path / "data")))
    forget()
    return tmp_path / "data"


# --- the key ---


def test_every_field_is_part_of_the_key(data):
    keys = {toy().key}
    for name in (field.name for field in fields(Experiment)):
        base = toy(**NEEDS.get(name, {}))
        changed = other(base, name)
        assert changed.key not in keys | {base.key}, name
        keys.add(changed.key)
    assert all(len(key) == 16 and int(key, 16) for key in keys)


def test_all_options_of_methods_inputs_and_peft_configs_are_part_of_the_key(data):
    """They come back from ``options`` (``test_options.test_configs_are_values``), and those are what is hashed."""
    runs = [toy(method=pl.Deflect(**options)) for options in ({}, {"rank": 3}, {"stream": "carried"})]
    runs += [toy(input=pl.EMB(**options)) for options in ({}, {"cells": 2})]
    runs += [toy(method=pl.HFPeft(config=peft.LoraConfig(r=rank))) for rank in (4, 8, 4)]
    assert len({run.key for run in runs}) == len(runs) - 1


def test_what_is_left_out_is_filled_in(data):
    assert toy(seed=3).key == toy(seed=3, init=3).key != toy(seed=3, init=0).key
    assert toy(method=pl.Deflect()).input == pl.EMB() and toy().key == toy(input=pl.RGB()).key


def test_an_experiment_comes_back_from_plain_values():
    run = toy(method=pl.Deflect(layers=(0, 1)), bands=("B04", "B03", "B02", "B08"), unseen={"longitudes": [0, 99]})
    assert Experiment.from_dict(json.loads(json.dumps(run.to_dict()))) == run


def test_where_and_on_what_day_it_is_planned_does_not_matter(data, tmp_path, monkeypatch):
    key = toy().key
    shutil.copytree(data, tmp_path / "elsewhere", copy_function=shutil.copyfile)  # with times of their own
    shutil.rmtree(data)
    monkeypatch.setenv("PEFTLIB_DATA", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PEFTLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(5)
    assert toy().key == key


def test_weights_count_by_their_bytes_wherever_they_lie(data, tmp_path):
    paths = [tmp_path / name for name in ("a.pt", "other/b.pt", "c.pt")]
    for path, content in zip(paths, (b"one", b"one", b"two"), strict=True):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    first, moved, other = (toy(weights=str(path)).key for path in paths)
    assert first == moved != other
    paths[0].write_bytes(b"new")  # within the same process
    assert toy(weights=str(paths[0])).key not in (first, other)


def test_data_or_weights_that_are_not_there_are_an_error(data, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"gone\.pt"):
        _ = toy(weights=str(tmp_path / "gone.pt")).key
    monkeypatch.setenv("PEFTLIB_DATA", str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match=r"eurosat.*PEFTLIB_DATA"):
        _ = toy().key


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("change", ["add", "edit"])
def test_other_files_of_any_part_are_other_data(change, split, data):
    key, listed = toy().key, data / "eurosat" / f"eurosat-{split}.txt"
    first = image_path(data, listed.read_text().split(".")[0])
    if change == "add":
        shutil.copy(first, image_path(data, "Forest_99"))
        listed.write_text(f"{listed.read_text()}Forest_99.jpg\n")
    else:
        contents = bytearray(first.read_bytes())  # of the same name and size: another pixel, say
        contents[-1] ^= 1
        first.write_bytes(contents)
    forget()
    assert toy().key != key


# --- what is refused ---


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"dataset": "imagenet"}, ["imagenet", *DATASETS]),
        ({"decoder": "mlp"}, ["mlp", "linear", "unet", "upernet"]),
        ({"schedule": "zigzag"}, ["zigzag", "cosine"]),
        ({"role": ""}, ["role=''", "final"]),
        ({"input": pl.LoRA()}, ["input=LoRA", "pl.EMB()"]),
        ({"folds": 1}, ["folds=1"]),
        ({"fold": 1}, ["fold=1", "0 folds"]),
        ({"folds": 3, "fold": 3}, ["fold=3", "3 folds"]),
        ({"val_share": 0.9}, ["val_share=0.9", "0 to 0.5"]),
        ({"metadata": ("time",)}, ["time", "location"]),
        ({"precision": "16"}, ["16", "32-true", "bf16-mixed"]),
        ({"method": "lora"}, ["lora", "pl.LoRA"]),
        ({"method": pl.LoRA}, ["LoRA", "pl.LoRA(rank=8)"]),
        *(({name: -1}, [name, "-1", "0"]) for name in ("folds", "tile", "train_images", "val_images", "seed")),
        *(({name: 0}, [f"{name}=0", "1"]) for name in ("image_size", "batch_size", "steps")),
        ({"train_tiles": 2}, ["train_tiles=2", "tile="]),
        *(({"data": {name: "x"}}, [name, "PEFTLIB_DATA"]) for name in ("split", "root", "bands")),
    ],
)
def test_bad_values_are_named_with_the_choices(wrong, said):
    with pytest.raises(ValueError) as error:
        toy(**wrong)
    assert all(word in str(error.value) for word in said)


# --- the parts ---


def sources(part) -> list[str]:
    return [Path(sample["meta"]["source"]).stem for sample in part]


def listed(data: Path, split: str) -> list[str]:
    return (data / "eurosat" / f"eurosat-{split}.txt").read_text().replace(".jpg", "").split()


def test_parts_are_the_data_sets_own(data):
    assert [sources(part) for part in toy().parts()] == [listed(data, split) for split in ("train", "val", "test")]
    assert all(part.bands == ("B08", "B04", "B03", "B02") for part in toy(bands=("B08", "B04", "B03", "B02")).parts())


@pytest.mark.parametrize(("share", "pooled"), [(0.0, ("train", "test")), (0.25, ("train", "test", "val"))])
def test_folds_test_every_image_once_and_validate_on_others(share, pooled, data):
    pool, tested = [name for split in pooled for name in listed(data, split)], []
    for fold in range(3):
        train, val, test = toy(folds=3, fold=fold, val_share=share).parts()
        if share:
            assert sorted(sources(train) + sources(val) + sources(test)) == sorted(pool) and len(val) == 4
        else:
            assert sources(val) == listed(data, "val") and sorted(sources(train) + sources(test)) == sorted(pool)
        labels = Counter(sample["label"] for sample in test)
        assert len(labels) == 3 and max(labels.values()) - min(labels.values()) <= 1
        tested += sources(test)
    assert sorted(tested) == sorted(pool)
    assert sources(toy(folds=3, repeat=1).parts()[2]) != sources(toy(folds=3).parts()[2])
    assert sources(toy(folds=3, seed=1).parts()[2]) == sources(toy(folds=3).parts()[2])


def test_without_a_val_part_it_is_cut_from_what_trains(data):
    (data / "eurosat" / "eurosat-val.txt").unlink()
    forget()
    with pytest.raises(ValueError, match=r"no val part.*val_share=0\.2"):
        toy().parts()
    train, val, test = toy(val_share=1 / 3).parts()
    assert sorted(sources(train) + sources(val)) == sorted(listed(data, "train")) and len(val) == 3
    assert sources(test) == listed(data, "test")


def test_a_search_never_opens_the_test_part(data):
    for name in listed(data, "test"):
        image_path(data, name).write_bytes(b"no image")
    train, val, test = toy(role="search").parts()
    assert (len(train), len(val), test) == (9, 6, None)
    with pytest.raises(ValueError, match="not a readable GeoTIFF"):
        toy().parts()


def test_a_search_in_folds_leaves_out_the_fold_that_is_tested(data):
    searched, final = (toy(folds=3, fold=1, role=role).parts() for role in ("search", "final"))
    assert searched[2] is None and sources(searched[0]) == sources(final[0])
    assert not set(sources(searched[0]) + sources(searched[1])) & set(sources(final[2]))


def test_tiles_are_cut_of_all_parts_and_chosen_for_training():
    scenes = dict(dataset="spectral_scenes", data={"length": 3, "size": 16}, unseen={"seed": 5})
    run = toy(**scenes, tile=8, train_tiles=1, val_images=5)
    parts = [*run.parts(), run.unseen_part()]
    assert [len(part) for part in parts] == [3, 5, 12, 12]
    assert {tuple(s["mask"].shape) for part in parts for s in part} == {(8, 8)}


def test_options_of_the_unseen_part_that_cannot_be(data):
    with pytest.raises(ValueError, match=r"Experiment\(unseen=.*root is PEFTLIB_DATA"):
        toy(unseen={"root": "x"})
    with pytest.raises(ValueError, match=r"Experiment\(unseen=.*6 of its images are in the folds"):
        toy(unseen={"longitudes": [0, 99]}, folds=3).unseen_part()


def test_eurosat_is_cut_by_longitude(tmp_path, monkeypatch):
    """Folds in the west, and what lies in the east unseen, of the train part too."""
    monkeypatch.setenv("PEFTLIB_DATA", str(write_eurosat(tmp_path)))
    for split, step in (("train", 1), ("val", 0), ("test", 0)):
        for i, name in enumerate(listed(tmp_path, split)):
            place = ("EPSG:4326", Affine(1e-4, 0, i * step, 0, -1e-4, 45))
            write_tif(image_path(tmp_path, name), np.ones((13, 8, 8), np.uint16), place)
    forget()
    run = toy(data={"longitudes": [0, 6]}, unseen={"longitudes": [6, 99], "split": "train"}, val_images=1)
    train, _, test = run.parts()
    names = listed(tmp_path, "train")
    assert (sources(train), sources(run.unseen_part())) == (names[:6], names[6:]) and len(test) == 6
    assert sources(replace(run, folds=3).unseen_part()) == names[6:]
    assert sources(toy(unseen={"longitudes": [0, 3], "split": "train"}).unseen_part()) == names[:3]
