"""Metamers: how their pairs are scored."""

import pytest
import torch

from peftlib.data.simulated.metamers import pair_accuracy


def test_pairs_are_scored_between_their_members_alone():
    truth = torch.tensor([[0, 0, 1, 3, 5, 7, 8, 9]])
    scores = torch.zeros(1, 10, 8)
    scores[0, 8] = 9.0  # the best of all ten, and not asked for
    scores[0, 0, 0] = 1.0  # right; the second pixel of class 0 is a draw, which the first member wins
    scores[0, 1, 2] = scores[0, 3, 3] = scores[0, 4, 4] = scores[0, 7, 5] = 1.0  # right, right, wrong, right
    found = pair_accuracy(scores, truth)
    assert found == {"canopy": 1.0, "dry": 1.0, "dark": 0.0, "flood": 1.0, "pairs": 0.75}
    scores[0, 1, 1] = 1.0
    assert pair_accuracy(scores, truth)["canopy"] == pytest.approx(2 / 3)
