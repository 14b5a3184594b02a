"""The metamer test: what it counts, that it goes on where it was, and what the committed rows claim."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import tiny_vit

import peftlib as pl
from peftlib import metamer_test as test
from peftlib.datasets.metamers import PAIRS
from peftlib.datasets.spectral_scenes import CLASSES, SpectralScenes

ROWS = Path(__file__).parents[1] / "data" / "results" / "spectral_scenes.csv"


def test_pairs_are_scored_between_their_members_alone():
    truth = torch.tensor([[0, 0, 1, 3, 5, 7, 8, 9]])
    scores = torch.zeros(1, 10, 8)
    scores[0, 8] = 9.0  # the best of all ten, and not asked for
    scores[0, 0, 0] = 1.0  # right; the second pixel of class 0 is a draw, which the first member wins
    scores[0, 1, 2] = scores[0, 3, 3] = scores[0, 4, 4] = scores[0, 7, 5] = 1.0  # right, right, wrong, right
    found = test.pair_accuracy(scores, truth)
    assert found == {"canopy": 1.0, "dry": 1.0, "dark": 0.0, "flood": 1.0, "pairs": 0.75}
    scores[0, 1, 1] = 1.0
    assert test.pair_accuracy(scores, truth)["canopy"] == pytest.approx(2 / 3)


def test_the_ceiling_of_colour_is_half_of_the_pairs():
    assert test.colour_ceiling(torch.tensor([0, 1, 7, 8])) == 1 - 3 / 8


def test_a_forest_on_all_bands_knows_what_one_on_colour_does_not():
    train, held_out = SpectralScenes("train", 60, 40), SpectralScenes("test", 60, 40)
    rgb, every = (
        test.pair_accuracy(*test.pixel_forest(train, held_out, bands))["pairs"]
        for bands in (("B04", "B03", "B02"), train.bands)
    )
    assert abs(rgb - 0.5) < 0.1 and every > 0.8


def test_the_forest_lets_the_pixels_of_a_scene_vote():
    train, held_out = (SpectralScenes(split, 80, 24, task="classification") for split in ("train", "test"))
    scores, truth = test.pixel_forest(train, held_out, train.bands)
    assert scores.shape == (80, 10) and truth.tolist() == [int(s["label"]) for s in held_out]
    assert torch.allclose(scores.sum(1), torch.ones(80, dtype=scores.dtype))
    assert (scores.argmax(1) == truth).float().mean() > 0.6


def test_a_run_makes_rows_and_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(test, "load_backbone", lambda name, image_size: tiny_vit())
    arguments = dict(seeds=(0,), scenes=40, epochs=1, size=32, progress=False)
    arguments |= dict(methods={"deflect": (pl.Deflect(), 1e-3)})
    rows = test.metamer_test(tmp_path, **arguments)
    assert tuple(rows.columns) == test.COLUMNS and set(rows["method"]) == {
        "colour ceiling",
        "forest, RGB",
        "forest",
        "deflect",
    }
    assert rows["value"].between(0, 1).all() and (rows["status"] == "done").all()
    monkeypatch.setattr("lightning.Trainer.fit", lambda *a, **k: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(test.metamer_test(tmp_path, **arguments), rows)


def test_the_committed_rows_hold_what_the_benchmark_promises():
    """RGB within 3 points of a coin on the pairs, the per-pixel reference 25 above, adapted models far above RGB."""
    rows = pd.read_csv(ROWS)
    assert tuple(rows.columns) == test.COLUMNS
    for task, part in rows[rows["metric"] == "pairs"].groupby("task"):
        mean = part.groupby("method")["value"].mean()
        assert abs(mean["forest, RGB"] - 0.5) <= 0.03 and mean["forest"] >= 0.75, task
    pairs = rows[(rows["metric"] == "pairs") & (rows["task"] == "segmentation")]
    assert (pairs[~pairs["method"].eq("colour ceiling")].groupby("method")["seed"].nunique() >= 3).all()
    mean = pairs.groupby("method")["value"].mean()
    assert abs(mean["frozen, RGB"] - 0.5) <= 0.03
    worst = pairs.groupby("method")["value"].min()
    best_rgb = pairs[pairs["method"] == "frozen, RGB"]["value"].max()
    assert min(worst["deflect"], worst["lora"]) > best_rgb + 0.1
    assert set(rows["metric"]) == {"accuracy", "pairs", *PAIRS} and np.isfinite(rows["value"]).all()
    assert len(CLASSES) == 10
