"""What is known of simulated scenes without a vision transformer: what is counted, and what committed rows claim."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from peftlib.data.simulated.metamers import PAIRS
from peftlib.data.simulated.spectral_scenes import SpectralScenes
from peftlib.studies import references as test

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


def test_references_make_rows():
    rows = test.references(scenes=40, size=32, seeds=(0, 1), labelled=50)
    assert tuple(rows.columns) == test.COLUMNS
    assert rows.groupby("task")["scenes"].unique().map(list).to_dict() == {"segmentation": [40], "classification": [50]}
    assert set(rows["method"]) == {"colour ceiling", "forest, RGB", "forest"}
    assert rows["value"].between(0, 1).all() and set(rows["task"]) == {"segmentation", "classification"}


def test_the_committed_references_hold_what_the_benchmark_promises():
    """RGB within 3 points of a coin on the pairs, all bands 25 above."""
    rows = pd.read_csv(ROWS)
    assert tuple(rows.columns) == test.COLUMNS
    for task, part in rows[rows["metric"] == "pairs"].groupby("task"):
        mean = part.groupby("method")["value"].mean()
        assert abs(mean["forest, RGB"] - 0.5) <= 0.03 and mean["forest"] >= 0.75, task
        assert (part[part["method"] != "colour ceiling"].groupby("method")["seed"].nunique() >= 3).all()
    assert set(rows["metric"]) == {"accuracy", "pairs", *PAIRS} and np.isfinite(rows["value"]).all()
