"""Simulated time series: what can be known of a field from one date, from all, and from their order."""

import datetime

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import balanced_accuracy_score, jaccard_score

import peftlib as pl
from peftlib.data import Phenology, load
from peftlib.data.simulated.phenology import CALENDARS, CLASSES, DAYS, calendar_scores, greenness
from peftlib.deflect.time_series import best_date, series_bands
from peftlib.sensors.bands import band_set

FIELDS = len(CALENDARS)
ONE = band_set(tuple(pl.SENSORS["sentinel2"]))


@pytest.fixture(scope="module")
def pixels():
    """Every fifth pixel of fields, of scenes that train and scenes that test: (n, 4, 13) and classes (n,)."""

    def of(split):
        spectra, truth = [], []
        for number in range(40):
            images, _, mask = Phenology(split, 40, 56).scene(number)
            inside = mask[2::5, 2::5].flatten() < FIELDS
            spectra.append(images[:, :, 2::5, 2::5].flatten(2).permute(2, 0, 1)[inside].numpy())
            truth.append(mask[2::5, 2::5].flatten()[inside].numpy())
        return np.concatenate(spectra), np.concatenate(truth)

    return of("train"), of("test")


def forest(pixels, see) -> float:
    """Share of test pixels that a random forest names rightly by what it sees of them, each class counting alike."""
    (train, known), (test, truth) = pixels
    found = RandomForestClassifier(40, min_samples_leaf=3, random_state=0).fit(see(train), known)
    return balanced_accuracy_score(truth, found.predict(see(test)))


def test_calendars_differ_and_each_date_halves_them():
    green = np.array([greenness(name, np.array(DAYS)) for name in CALENDARS])
    assert ((green < 0.01) | (green > 0.99)).all() and len(np.unique(green.round(), axis=0)) == FIELDS
    assert (green.round().sum(0) == FIELDS / 2).all()
    jitter = np.array([greenness(name, np.array(DAYS) + shift) for shift in (-12, 12) for name in CALENDARS])
    assert ((jitter < 0.02) | (jitter > 0.98)).all()  # the date of a picture tells nothing of the class


def test_colour_tells_nothing(pixels):
    assert forest(pixels, lambda x: x[:, :, 1:4].reshape(len(x), -1)) < 1 / 6 + 0.05


@pytest.mark.parametrize("date", [0, 3])
def test_one_date_tells_one_half_from_the_other(pixels, date):
    assert 0.28 < forest(pixels, lambda x: x[:, date]) < 2 / 6 + 0.03


def test_dates_without_order_tell_how_many_are_green(pixels):
    assert 0.40 < forest(pixels, lambda x: np.sort(x, axis=1).reshape(len(x), -1)) < 3 / 6 + 0.05


def test_all_dates_tell_all(pixels):
    assert forest(pixels, lambda x: x.reshape(len(x), -1)) > 0.9


def test_a_sample_has_the_form_of_all():
    data = load("phenology", split="val", length=2, size=32)
    sample = data[0]
    assert sample["image"].shape == (3 + 4 * 15, 32, 32) and sample["mask"].shape == (32, 32)
    assert sample["bands"] == series_bands(tuple(pl.SENSORS["sentinel2"]), 4) and sample["sensor"] == "sentinel2"
    images, _, mask = data.scene(0)
    assert torch.equal(sample["image"][3:16], images[0]) and torch.equal(sample["mask"], mask)
    assert torch.equal(sample["image"][:3], images[best_date(images, ONE)][[3, 2, 1]])
    without = Phenology("val", 2, 32, bands=series_bands(tuple(pl.SENSORS["sentinel2"]), 4, day=False))
    assert without[0]["image"].shape[0] == 3 + 4 * 13 and not without.bands.day


def test_views_show_the_same_scenes():
    series, best, each = (Phenology("val", 3, 32, view=view) for view in ("series", "best", "each"))
    assert (len(series), len(best), len(each)) == (3, 3, 12)
    images, days, mask = series.scene(2)
    number = best_date(images, ONE)
    assert torch.equal(best[2]["image"], images[number]) and torch.equal(best[2]["mask"], mask)
    for date in range(4):
        sample = each[8 + date]
        assert torch.equal(sample["image"], images[date]) and torch.equal(sample["mask"], mask)
        assert datetime.date.fromisoformat(sample["meta"]["date"]).timetuple().tm_yday == days[date]
    assert best[2]["meta"]["date"] == each[8 + number]["meta"]["date"]


def test_scenes_follow_from_their_arguments_alone():
    one, again, other = (Phenology("train", 2, 32, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one[1]["image"], again[1]["image"]) and not torch.equal(one[1]["image"], other[1]["image"])
    assert not torch.equal(one[1]["image"], Phenology("test", 2, 32)[1]["image"])


def test_unknown_choices_are_refused():
    for options, words in (
        ({"split": "all"}, r"no split 'all'; choose from"),
        ({"view": "mean"}, r"view='mean'; choose from \('series', 'best', 'each'\)"),
        ({"view": "best", "bands": ("B04", "B03", "B02", "B08@1")}, r"no bands \['B08@1'\]"),
    ):
        with pytest.raises(ValueError, match=words):
            Phenology(**options)


# --- the calendar test ---


def test_fields_are_judged_among_fields():
    truth = torch.tensor([[[0, 5, CLASSES.index("water"), -1]]])
    logits = torch.zeros(1, len(CLASSES), 1, 4)
    logits[0, CLASSES.index("built")] = 9.0  # no answer to the question
    logits[0, 0] = 1.0
    assert calendar_scores(logits, truth)["fields"] == 0.5


def test_dates_are_averaged_scene_by_scene():
    """By hand: four probabilities of each pixel, their mean, its largest class."""
    data = Phenology("test", 3, 32, view="each")
    (score,) = data.evaluations().values()
    truth = torch.stack([data[i]["mask"] for i in range(12)])
    truth[:, 0] = -1
    right = torch.nn.functional.one_hot(truth.clamp_min(0), len(CLASSES)).permute(0, 3, 1, 2)
    logits = torch.randn(right.shape) + 2 * right
    found, right = score(logits, truth), []
    mean = torch.stack([logits[4 * scene : 4 * scene + 4].softmax(1).mean(0) for scene in range(3)])
    for scene in range(3):
        mask = truth[4 * scene]
        right.append((mean[scene, :FIELDS].argmax(0) == mask)[(mask >= 0) & (mask < FIELDS)])
    assert found["fields"] == pytest.approx(float(torch.cat(right).float().mean()))
    known = truth[::4] >= 0
    ious = jaccard_score(truth[::4][known], mean.argmax(1)[known], average=None)  # of classes that are there or named
    assert found["scene_miou"] == pytest.approx(ious.mean())
    assert Phenology("test", 3, 32, view="best").evaluations()["calendar"](logits, truth) != found
