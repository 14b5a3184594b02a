"""Bands are names: whatever their order, red is red; indices are spyndex's own."""

import json

import numpy as np
import pytest
import spyndex
import torch
from helpers import SENTINEL2, images
from hypothesis import given
from hypothesis import strategies as st

from peftlib.sensors.bands import SENSORS, band_set
from peftlib.sensors.spectral_indices import (
    DEFAULT_INDICES,
    SpectralIndices,
    available_indices,
    index_function,
    spyndex_bands,
)

RGB_NAMES = {"sentinel2": ("B04", "B03", "B02"), "hls": ("B04", "B03", "B02"), "landsat8": ("B4", "B3", "B2")}


# --- names ---


@given(st.data())
def test_rgb_follows_names_in_any_order(data):
    sensor = data.draw(st.sampled_from(sorted(SENSORS)))
    others = [name for name in SENSORS[sensor] if name not in RGB_NAMES[sensor]]
    chosen = data.draw(st.lists(st.sampled_from(others), unique=True))
    names = data.draw(st.permutations([*RGB_NAMES[sensor], *chosen]))
    bands = band_set(names, sensor)
    assert tuple(bands.names[i] for i in bands.rgb) == RGB_NAMES[sensor]
    assert [bands.names[i] for i in bands.beyond_rgb] == [n for n in names if n not in RGB_NAMES[sensor]]
    assert len(bands) == len(names)
    assert list(bands.wavelengths) == [SENSORS[sensor][name] for name in names]


@pytest.mark.parametrize(
    ("bands", "sensor", "says"),
    [
        (("B02", "B03", "B04", "B13"), "sentinel2", ["B13", "B12", "B8A"]),
        (("B04", "B03", "B02", "B08", "B08"), "sentinel2", ["repeat", "B08"]),
        (("B04", "B02", "B08"), "sentinel2", ["B03", "red, green and blue"]),
        (("B4", "B3", "B2"), "sentinel2", ["B4", "did you mean B04"]),
        ("B04", "sentinel2", ["sequence", "B04"]),
        (("B04", "B03", "B02"), "sentinel-2", ["sentinel-2", "sentinel2", "landsat8", "hls", "custom"]),
        (("red", "green", "blue"), "custom", ["mapping", "wavelength"]),
        ({"red": 0.665, "green": 0.560, "blue": 0.490}, "custom", ["0.665", "nanometres"]),
        ({"red": 665, "green": 560, "blue": float("nan")}, "custom", ["blue", "nan"]),
        ({"red": 665, "green": 560, "nir": 833}, "custom", ["blue", "440", "530"]),
        ({"B04": 665, "B03": 560, "B02": 490}, "sentinel2", ["sequence"]),
    ],
)
def test_wrong_bands_say_what_was_given_and_needed(bands, sensor, says):
    with pytest.raises(ValueError) as error:
        band_set(bands, sensor)
    missing = [text for text in says if text not in str(error.value)]
    assert not missing, f"{error.value} does not mention {missing}"


def test_custom_colours_and_thermal_bands_go_by_wavelength():
    bands = band_set({"nir": 833, "far red": 685, "blue": 490, "red": 660, "green": 560}, "custom")
    assert [bands.names[i] for i in bands.rgb] == ["red", "green", "blue"]
    landsat = band_set(tuple(SENSORS["landsat8"]), "landsat8")
    assert [landsat.names[i] for i in landsat.thermal] == ["B10", "B11"] and band_set(SENTINEL2).thermal == ()
    have = {standard: landsat.names[i] for standard, i in spyndex_bands(landsat).items()}
    expected = {"A": "B1", "B": "B2", "G": "B3", "R": "B4", "N": "B5", "S1": "B6", "S2": "B7", "T1": "B10", "T2": "B11"}
    assert {name: have.get(name) for name in expected} == expected


def test_statistics_follow_names_and_wavelengths():
    mean, std = band_set(SENTINEL2).statistics()
    backwards = band_set(SENTINEL2[::-1]).statistics()
    assert torch.equal(backwards[0], mean.flip(0)) and torch.equal(backwards[1], std.flip(0))
    sentinel = dict(zip(SENTINEL2, mean.tolist(), strict=True))
    landsat = band_set(tuple(SENSORS["landsat8"]), "landsat8")
    by_name = dict(zip(landsat.names, landsat.statistics()[0].tolist(), strict=True))
    # The same part of the spectrum: B5 is the narrow near infrared, B7 the second shortwave infrared.
    assert by_name["B5"] == pytest.approx(sentinel["B8A"]) and by_name["B7"] == pytest.approx(sentinel["B12"])
    assert 250 < by_name["B10"] < 330 and (landsat.statistics()[1] > 0).all()
    mean, _ = band_set({"r": 665, "g": 560, "b": 490, "cirrus": 1375, "swir": 1240}, "custom").statistics()
    assert mean[3] < 0.01 < mean[4]  # only a cirrus band borrows the cirrus statistics


def test_bands_survive_json():
    for bands in ((SENTINEL2[::-1], "sentinel2"), ({"swir": 1610, "red": 665, "green": 560, "blue": 490}, "custom")):
        made = band_set(*bands)
        again = band_set(**json.loads(json.dumps(made.to_json())))
        assert again == made and hash(again) == hash(made) and band_set(again) is again


# --- spectral indices ---


def test_standard_names_agree_with_spyndex_platform_table():
    bands = band_set(SENTINEL2)
    have = spyndex_bands(bands)
    for standard, band in spyndex.bands.items():
        if hasattr(band, "sentinel2a"):
            theirs = band.sentinel2a.band  # B1, B8A, B12
            padded = theirs if theirs == "B8A" else f"B{int(theirs[1:]):02d}"
            assert bands.names[have[standard]] == padded, standard


def test_every_catalogue_index_agrees_with_spyndex_or_is_refused():
    order = SENTINEL2[::-1]
    bands = band_set(order)
    x = images(order, batch=1, size=(4, 4)).double()
    have = spyndex_bands(bands)
    values = {standard: x[:, i].numpy() for standard, i in have.items()}
    constants = {n: c.default for n, c in spyndex.constants.items() if isinstance(c.default, int | float)}
    agreed = 0
    for name, entry in spyndex.indices.items():
        if not set(entry.bands) <= set(values) | set(constants):
            with pytest.raises(ValueError, match=name):
                index_function(name, bands)
            continue
        parameters = {s: values.get(s, constants.get(s)) for s in entry.bands}
        try:
            expected = spyndex.computeIndex(name, params=parameters)
        except NameError:  # a formula that spyndex cannot compute without numpy in scope
            continue
        mine = index_function(name, bands)(x).numpy()
        np.testing.assert_allclose(mine, expected, rtol=1e-9, atol=1e-12, err_msg=name)
        agreed += 1
    assert agreed > 100


def test_indices_that_cannot_be_are_named():
    for name, says in (("NDVVI", "NDVVI.*NDVI"), ("SR", r"SR .* outside \[-1, 1\].*NDVI")):
        with pytest.raises(ValueError, match=says):
            SpectralIndices((name,), band_set(SENTINEL2))


def test_indices_are_clamped_and_zero_over_zero_is_zero():
    bands = band_set(("B02", "B03", "B04", "B08"))
    x = torch.tensor([[0.1, 0.1, -0.1, 0.3], [0.1, 0.1, 0.0, 0.0], [0.1, 0.1, 0.1, -0.1], [0.1, 0.1, 0.2, 0.6]])
    got = SpectralIndices(("NDVI",), bands)(x.T[None, :, :, None])[0, 0, :, 0]
    # (0.3 + 0.1) / 0.2 = 2 -> 1; 0 / 0 -> 0; -0.2 / 0 = -inf -> -1; 0.4 / 0.8
    torch.testing.assert_close(got, torch.tensor([1.0, 0.0, -1.0, 0.5]))
    assert SpectralIndices((), bands)(images(bands)).shape == (2, 0, 32, 32)
    assert available_indices(bands) == ("NDVI", "NDWI") and available_indices(band_set(SENTINEL2)) == DEFAULT_INDICES
