"""The simulated benchmark: metamers are metamers, truth is truth, the same call gives the same scene."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from scipy.stats import ks_2samp

from peftlib.data.simulated import spectra
from peftlib.data.simulated.metamers import PAIRS, TOLERANCE, metamers, pair_accuracy, pools
from peftlib.data.simulated.spectral_scenes import CLASSES, SpectralScenes
from peftlib.sensors.bands import band_set

RGB = [3, 2, 1]


# --- spectra ---


@pytest.mark.parametrize(("sensor", "count"), [("sentinel2", 13), ("hls", 6), ("landsat8", 7), ("hyperspectral", 180)])
def test_responses_are_weighted_means(sensor, count):
    bands, matrix = spectra.response(sensor)
    assert matrix.shape == (count, 180) and (matrix >= 0).all() and len(bands) == count
    np.testing.assert_allclose(matrix.sum(1), 1)  # a grey surface is as grey in every band
    centre = matrix @ spectra.library()[1]  # the mean wavelength that a band sees is its own
    gap = [name for name in bands if name == "B10"]  # lies where the spectra have no samples
    for name, nm, seen in zip(bands, bands.values(), centre, strict=True):
        assert name in gap or seen == pytest.approx(nm, abs=12), name


def test_places_lie_on_their_continent():
    table = spectra.library()[2]
    assert set(table["continent"]) == {"", *spectra.CONTINENTS}
    box = spectra.CONTINENTS["africa"]
    here = table[table["continent"] == "africa"]
    assert here["LAT"].between(*box[:2]).all() and here["LON"].between(*box[2:]).all()
    assert (table[(table["LAT"] == 0) & (table["LON"] == 0)]["continent"] == "").all()


# --- metamers ---


@pytest.mark.parametrize("places", [(), ("africa",), ("oceania",)], ids=str)
def test_pairs_have_one_colour_and_two_spectra(places):
    matrix = spectra.response("sentinel2")[1]
    made = metamers(places)
    assert list(made) == list(PAIRS)
    for name, pair in made.items():
        seen = pair @ matrix.T
        assert pair.shape == (160, 2, 180) and (pair >= 0).all() and (pair < 1.05).all()
        assert np.abs(seen[:, 0] - seen[:, 1])[:, RGB].max() < 1.1 * TOLERANCE
        assert np.abs(seen[:, 0] - seen[:, 1])[:, [7, 11, 12]].max(1).mean() > 0.05, name


def test_mixtures_are_of_their_own_class():
    """Non-negative weights on the class's measured spectra give a metamer back."""
    small = [(name, m, pool) for name in PAIRS for m, pool in enumerate(pools()[name]) if len(pool) < 900]
    assert len(small) >= 4
    for name, member, pool in small:
        mixture = metamers()[name][0, member].astype(float)
        assert nnls(pool.T, mixture)[1] < 1e-3, (name, member)


# --- scenes ---


@pytest.mark.parametrize("sensor", ["sentinel2", "landsat8", "hyperspectral"])
def test_a_scene_is_a_sample(sensor):
    data = SpectralScenes("test", 3, size=40, sensor=sensor)
    sample = data[1]
    bands = band_set(sample["bands"], sample["sensor"])
    assert sample["image"].shape == (len(bands), 40, 40) and sample["image"].dtype == torch.float32
    assert torch.isfinite(sample["image"]).all() and sample["meta"]["gsd"] == 10.0
    assert sample["mask"].shape == (40, 40) and sample["mask"].dtype == torch.int64
    assert len(data) == 3 and data.evaluations() == {"pairs": pair_accuracy}


def test_scenes_depend_on_seed_split_and_index_alone():
    first, again = SpectralScenes(length=5), SpectralScenes(length=9)
    for i in (4, 0, 4):
        assert torch.equal(first[i]["image"], again[i]["image"]) and torch.equal(first[i]["mask"], again[i]["mask"])
    others = [SpectralScenes(length=5)[1], SpectralScenes("val", 5)[0], SpectralScenes(length=5, seed=1)[0]]
    assert not any(torch.equal(first[0]["image"], other["image"]) for other in others)


def test_splits_share_no_spectra():
    def spectra_of(split: str) -> set[bytes]:
        covers = list(SpectralScenes(split)._covers[""].values())[:4]
        return set(map(bytes, np.concatenate([spectra.reshape(-1, 13) for spectra in covers])))

    train, val, test = map(spectra_of, ("train", "val", "test"))
    assert not (train & val or train & test or val & test)


def test_sensors_see_the_same_scenes():
    wide, narrow = SpectralScenes(length=3)[2], SpectralScenes(length=3, sensor="hls")[2]
    assert torch.equal(wide["mask"], narrow["mask"])
    same = [wide["bands"].index(band) for band in narrow["bands"]]
    assert (wide["image"][same] - narrow["image"]).abs().mean() < 0.01  # but for noise


def test_a_twin_has_the_same_colours_and_other_classes():
    data = SpectralScenes(length=20)
    for i in range(20):
        scene, twin = data[i], data.twin(i)
        assert (scene["image"][RGB] - twin["image"][RGB]).abs().max() < 2 * TOLERANCE
        pairs = scene["mask"] < 2 * len(PAIRS)
        assert torch.equal(twin["mask"][pairs], scene["mask"][pairs] ^ 1)
        assert torch.equal(twin["mask"][~pairs], scene["mask"][~pairs])
        if pairs.any():
            assert (scene["image"] - twin["image"])[:, pairs].abs().mean() > 0.02


@pytest.fixture(scope="module")
def covers():
    """Of 300 scenes, the mean reflectance of each class that is in them: (n, 13) and classes (n,)."""
    data = SpectralScenes(length=300, size=56)
    samples = [data[i] for i in range(300)]
    rows = [(s["image"][:, s["mask"] == c].mean(1), c) for s in samples for c in s["mask"].unique()]
    return torch.stack([mean for mean, _ in rows]).numpy(), np.array([int(c) for _, c in rows])


@pytest.mark.parametrize("pair", PAIRS)
def test_colour_cannot_tell_a_pair_apart(pair, covers):
    """Two-sample tests (Kolmogorov, Smirnov) between scenes: no difference in colour, a large one beyond."""
    mean, classes = covers
    first = 2 * list(PAIRS).index(pair)
    a, b = (mean[classes == c].T for c in (first, first + 1))
    assert min(a.shape[1], b.shape[1]) > 100
    colours = [(a[i], b[i]) for i in RGB] + [(a[3] / a[1], b[3] / b[1]), (a[2] / a[3], b[2] / b[3])]
    assert min(ks_2samp(*colour).pvalue for colour in colours) > 0.01
    assert min(ks_2samp(a[i], b[i]).pvalue for i in (7, 11, 12)) < 1e-6


def test_every_class_is_frequent(covers):
    assert (np.bincount(covers[1], minlength=len(CLASSES)) > 60).all()


def test_pairs_are_scored_between_their_members_alone():
    truth = torch.tensor([[0, 0, 1, 3, 5, 7, 8, 9]])
    scores = torch.zeros(1, 10, 8)
    scores[0, 8] = 9.0  # the best of all ten, and not asked for
    scores[0, 0, 0] = 1.0  # right; the second pixel of class 0 is a draw, which the first member wins
    scores[0, 1, 2] = scores[0, 3, 3] = scores[0, 4, 4] = scores[0, 7, 5] = 1.0  # right, right, wrong, right
    assert pair_accuracy(scores, truth) == {"canopy": 1.0, "dry": 1.0, "dark": 0.0, "flood": 1.0, "pairs": 0.75}
    scores[0, 1, 1] = 1.0
    assert pair_accuracy(scores, truth)["canopy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(split="all"), ("'all'", "train")),
        (dict(sensor="spot"), ("'spot'", "sentinel2", "hyperspectral")),
        (dict(continents=("atlantis",)), ("'atlantis'", "africa")),
        (dict(bands=("B02", "B08")), ("B04",)),
    ],
)
def test_wrong_options_are_named(options, says):
    with pytest.raises(ValueError) as error:
        SpectralScenes(**options)
    assert all(text in str(error.value) for text in says), str(error.value)
