"""Statistics, each against a computation of its own."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from peftlib.experiments.statistics import Interval, detectable_difference, holm, paired, paired_difference, verdict

DIFFERENCES = [1.0, 3.0, -0.5, 2.0, 4.5, 1.5]


def test_without_shared_images_the_interval_is_students():
    found = paired_difference(DIFFERENCES)
    expected = stats.ttest_rel(DIFFERENCES, np.zeros(6))
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((low, high, expected.pvalue))
    assert (found.mean, found.n) == (np.mean(DIFFERENCES), 6)


def test_shared_images_widen_it_as_nadeau_and_bengio_say():
    """Five folds: variance times 1/J + 1/4 in place of 1/J; the t quantile of 5 degrees of freedom is 2.5706."""
    found = paired_difference(DIFFERENCES, test_to_train=1 / 4)
    variance = sum((d - 11.5 / 6) ** 2 for d in DIFFERENCES) / 5
    assert found.high - found.mean == pytest.approx(2.5706 * (variance * (1 / 6 + 1 / 4)) ** 0.5, rel=1e-4)
    assert found.p > paired_difference(DIFFERENCES).p


def test_one_pair_settles_nothing():
    assert paired_difference([3.0]).low == -np.inf and verdict(paired_difference([3.0])) == "not settled"
    assert paired_difference([]).n == 0 and paired_difference([0.0, 0.0]).p == 1


def test_pairs_share_data_set_backbone_repeat_fold_and_seed():
    plain = dict(dataset="a", backbone="b", repeat=0, seed=0)
    rows = [plain | {"key": f"{m}{f}", "method": m, "fold": f, "percent": p} for m, f, p in
            (("x", 0, 5.0), ("x", 1, 7.0), ("y", 1, 4.0), ("y", 0, 4.5), ("y", 2, 9.0))]  # fmt: skip
    scores = pd.DataFrame(rows)
    found = paired(scores, scores["method"] == "x", scores["method"] == "y")
    assert found.set_index("fold")["difference"].to_dict() == {0: 0.5, 1: 3.0}
    twice = pd.concat([scores, scores[:1].assign(key="again")], ignore_index=True)
    with pytest.raises(ValueError, match=r"2 runs of one kind share dataset.*x0, again"):
        paired(twice, twice["method"] == "x", twice["method"] == "y")


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]


def test_the_detectable_difference_is_settled_that_often():
    shift = detectable_difference(std=2.0, n=5, power=0.8)
    draws = np.random.default_rng(0).normal(shift, 2.0, (4000, 5))
    settled = np.mean([paired_difference(sample).p < 0.05 for sample in draws])
    assert settled == pytest.approx(0.8, abs=0.02)
    assert detectable_difference(2.0, 5, 0.25) == pytest.approx(shift * (1 + 5 / 4) ** 0.5)


def test_verdicts():
    intervals = [Interval(1, 0.1, 2, 5), Interval(-1, -2, -0.1, 5), Interval(1, -0.1, 2, 5)]
    assert [verdict(one) for one in intervals] == ["ahead", "behind", "not settled"]
    near = Interval(0.5, -1.5, 1.9, 5)
    assert verdict(near, 2) == "no difference of 2 points" and verdict(near, 1.8) == verdict(near) == "not settled"
