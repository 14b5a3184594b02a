"""Evaluations of finished runs: single images, a data set's own scores, and drift on RGB."""

import numpy as np
import pytest
import torch
from helpers import adapted, tiny_vit
from toy_data import Toy
from toy_runs import do, toy

import peftlib as pl
from peftlib.data import EarthData, SpectralScenes
from peftlib.experiments.evaluations import evaluate, rgb_drift
from peftlib.training.metrics import class_scores
from peftlib.training.tasks import Classification, Segmentation

SCENES = {"length": 6, "size": 32}


@pytest.fixture(scope="module")
def parts():
    return SpectralScenes("train", **SCENES), SpectralScenes("test", **SCENES)


def made(method, train, **options) -> tuple:
    vit = tiny_vit()
    return adapted(method, train.bands, vit=vit, image_size=32, **options).eval(), vit


# --- single images ---


def test_what_is_kept_of_single_images_gives_the_scores_of_all(parts, tmp_path):
    model, _ = made(pl.Deflect(), parts[1])
    task = Segmentation(model, parts[1].classes).eval()
    loader = EarthData(*parts, parts[1], batch_size=4).test_dataloader()
    own = evaluate(task, loader, "32-true", tmp_path / "a.npz")
    kept = np.load(tmp_path / "a.npz")
    with torch.no_grad():
        logits = task(torch.stack([sample["image"] for sample in parts[1]]))
    truth = torch.stack([sample["mask"] for sample in parts[1]])
    assert own == {name: pytest.approx(value) for name, value in parts[1].evaluations()["pairs"](logits, truth).items()}
    assert kept["confusion"].sum((1, 2)).tolist() == [32 * 32] * 6 and len(set(kept["source"])) == 6
    found = class_scores(torch.from_numpy(kept["confusion"]).sum(0), task.classes)
    assert float(found["accuracy"]) == pytest.approx(float((logits.argmax(1) == truth).float().mean()), abs=1e-6)


def test_logits_are_kept_of_classification(tmp_path):
    data = Toy(5)
    data.evaluations = dict
    task = Classification(made(pl.LoRA(), data)[0], 3).eval()
    assert evaluate(task, EarthData(data, data, data).test_dataloader(), "32-true", tmp_path / "a.npz") == {}
    kept = np.load(tmp_path / "a.npz")
    assert kept["logits"].shape == (5, 3) and kept["truth"].tolist() == [0, 1, 2, 0, 1]


# --- drift on RGB ---


@pytest.mark.parametrize("method", [pl.Frozen(), pl.LoRA(), pl.Deflect()])
def test_what_is_not_trained_has_not_moved(method, parts):
    input = None if isinstance(method, pl.Deflect) else pl.Inflated("zero")
    found = rgb_drift(*made(method, parts[0], input=input), parts[1])
    assert list(found) == [f"block {i}" for i in range(len(tiny_vit().blocks))] and max(found.values()) < 1e-5


def test_further_bands_alone_do_not_count(parts):
    model, vit = made(pl.Frozen(), parts[0], input=pl.Inflated("zero"))
    with torch.no_grad():
        model.vit.patch_embed.proj.weight[:, 3:].normal_(0, 0.3)
    assert max(rgb_drift(model, vit, parts[1]).values()) < 1e-5


def test_drift_is_the_distance_over_the_spread(parts):
    model, vit = made(pl.Full(), parts[0])
    with torch.no_grad():
        model.vit.blocks[-1].mlp.fc2.bias += 2.0  # moves every token that leaves the last block alike
        step = model.vit.blocks[-1].ls2(torch.full((model.vit.embed_dim,), 2.0))
    found = list(rgb_drift(model, vit, parts[1]).values())
    assert max(found[:-1]) < 1e-5
    images = torch.stack([sample["image"] for sample in parts[1]])[:, [3, 2, 1]]
    before = pl.adapt(vit, pl.Frozen(), ("B04", "B03", "B02"), image_size=32)
    with torch.no_grad():
        z, _ = before.embed(images)
        for block in before.vit.blocks:
            z = block(z)
    tokens = z[:, vit.num_prefix_tokens :].flatten(0, 1)
    spread = (tokens - tokens.mean(0)).square().sum()
    assert found[-1] == pytest.approx(float((len(tokens) * step.square().sum() / spread).sqrt()), rel=1e-4)


# --- in a run ---


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    scenes = dict(dataset="spectral_scenes", data={"length": 4, "size": 32}, method=pl.Full(), steps=1, rgb_drift=True)
    runs = [toy(**scenes, unseen={"length": 4}), toy(**scenes, unseen={"seed": 5})]
    runs += [toy(**scenes | {"rgb_drift": False}), toy(**scenes, unseen={"seed": 5}, role="search")]
    return runs, do(runs, tmp_path_factory.mktemp("rows"))[1]


def metrics(rows, run, split: str) -> dict:
    mine = rows[(rows["key"] == run.key) & (rows["split"] == split)]
    return mine.set_index("metric")["value"].dropna().to_dict()  # the IoU of a class that does not occur is NaN


def test_a_run_trains_once_and_is_tested_twice(rows):
    (same, other, plain, search), table = rows
    assert metrics(table, same, "unseen") == metrics(table, same, "test") == metrics(table, plain, "test")
    assert metrics(table, other, "test") == metrics(table, plain, "test")
    assert {"loss", "miou", "pairs"} <= metrics(table, other, "unseen").keys()
    assert metrics(table, other, "unseen") != metrics(table, plain, "test")
    assert set(table.loc[table["key"] == search.key, "split"]) == {"val"}


def test_a_run_says_how_far_it_moved_where_it_is_asked(rows):
    (same, other, plain, _), table = rows
    assert metrics(table, same, "rgb") == metrics(table, other, "rgb") and not metrics(table, plain, "rgb")
    assert all(moved > 0 for moved in metrics(table, same, "rgb").values())
