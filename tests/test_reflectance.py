"""What an image must look like, and how it is normalised."""

import numpy as np
import pytest
import torch
from helpers import SAVANNA, SENTINEL2, adapted, images

import peftlib as pl
from peftlib.sensors.bands import SENSORS, band_set
from peftlib.sensors.reflectance import Reflectance, check_reflectance

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def module(bands=SENTINEL2, sensor="sentinel2", size=(32, 32), **options) -> Reflectance:
    return Reflectance(band_set(bands, sensor), size, MEAN, STD, **options)


def changed(*place, value: float) -> torch.Tensor:
    x = images()
    x[place] = value
    return x


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (images() * 10_000, ["expected reflectance", "10000"]),
        ((images() * 255).round(), ["expected reflectance", "255"]),
        ((images() * 20).round(), ["expected reflectance", "%"]),  # at most 10: only their share gives them away
        (changed(0, 0, 0, 0, value=-9999.0), ["-9999", "fill"]),
        (changed(1, 7, 3, 4, value=float("nan")), ["NaN or infinite", "'B08': 1", "nodata='zero'"]),
    ],
)
def test_values_that_are_no_reflectance_are_refused(image, says):
    with pytest.raises(ValueError) as error:
        adapted(pl.Deflect())(image)
    assert all(text in str(error.value) for text in says), str(error.value)


def test_clouds_and_dark_water_pass_and_missing_pixels_hide_nothing():
    x = images()
    x[:, :, :3, :3], x[:, :, 10:12], x[0, 0, 31, 31] = 1.55, -0.05, 2.8  # one saturated pixel
    module().check(x)
    assert adapted(pl.Deflect())(x[:0]).shape == (0, 18, 32)  # an empty batch
    x *= 10
    x[:, :, 2:] = float("nan")  # the share of impossible values is one of the pixels that have data
    with pytest.raises(ValueError, match="expected reflectance"):
        check_reflectance(x.clamp(max=9), band_set(SENTINEL2), (32, 32), nodata="zero")


def test_thermal_bands_are_kelvin():
    bands = tuple(SENSORS["landsat8"])
    layer, x = module(bands, "landsat8"), images(bands, "landsat8")
    layer.check(x)
    x[:, bands.index("B10")] -= 273.15
    with pytest.raises(ValueError, match=r"B10.*kelvin"):
        layer.check(x)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (torch.rand(2, 12, 32, 32), ["12 channels", "13 bands", "B8A"]),
        (torch.rand(2, 13, 32, 40), ["(32, 40)", "(32, 32)", "image_size"]),
        (torch.rand(13, 32, 32), ["(13, 32, 32)", "(B, C, H, W)"]),
        (torch.zeros(2, 13, 32, 32, dtype=torch.uint16), ["uint16", "float"]),
    ],
)
def test_wrong_shapes_and_types_are_refused(image, says):
    with pytest.raises(ValueError) as error:
        module().check(image)
    assert all(text in str(error.value) for text in says), str(error.value)


# --- the stretch and the standardisation ---


@pytest.mark.parametrize("white", [0.3, 0.15])
def test_rgb_is_divided_by_white_clipped_and_normalised(white):
    x = images(SAVANNA)
    x[0, :, 0, 0], x[0, :, 0, 1] = -0.05, 0.9
    got = module(SAVANNA, rgb_white=white).rgb(x)
    for channel, name in enumerate(("B04", "B03", "B02")):
        band = x[:, SAVANNA.index(name)].numpy().astype(np.float64)
        expected = (np.clip(band / white, 0, 1) - MEAN[channel]) / STD[channel]
        np.testing.assert_allclose(got[:, channel].numpy(), expected, rtol=0, atol=1e-6)


def test_other_bands_are_standardised_in_their_own_order():
    bands = ("B08", "B04", "B11", "B03", "B02")
    layer, x = module(bands), images(bands)
    layer.mean.copy_(torch.tensor([0.2, 0.1]).view(-1, 1, 1))
    layer.std.copy_(torch.tensor([0.5, 0.25]).view(-1, 1, 1))
    torch.testing.assert_close(layer.beyond(x)[:, 0], (x[:, 0] - 0.2) / 0.5)
    torch.testing.assert_close(layer.beyond(x)[:, 1], (x[:, 2] - 0.1) / 0.25)


# --- pixels without data ---


def test_nodata_zero_marks_pixels_and_fills_with_means():
    x = images(SAVANNA)
    x[0, 3, 5, 6] = float("nan")  # near infrared alone is missing
    x[1, 2, 1, 2] = float("inf")  # red alone is missing
    layer = module(SAVANNA, nodata="zero")
    assert (~layer.valid(x)).nonzero().tolist() == [[0, 3, 5, 6], [1, 2, 1, 2]]
    assert layer.beyond(x)[0, 0, 5, 6] == 0 and layer.rgb(x)[1, 0, 1, 2] == 0  # means, once standardised
    assert layer.rgb(x)[0, :, 5, 6].abs().min() > 0  # what is there stays
    assert all(torch.isfinite(t).all() for t in (layer.rgb(x), layer.beyond(x), layer.filled(x)))
    x, strict = images(SAVANNA), module(SAVANNA)
    assert strict.valid(x) is None and bool(layer.valid(x).all())
    for read in ("rgb", "beyond", "filled"):  # the same where nothing is missing
        assert torch.equal(getattr(strict, read)(x), getattr(layer, read)(x))


# --- fit ---


@pytest.mark.parametrize(
    "wrap", [lambda b: b, lambda b: {"image": b}, lambda b: (b, 0)], ids=["tensor", "dict", "tuple"]
)
def test_fit_is_numpys_mean_and_deviation_over_batches_without_missing_values(wrap):
    batches = [images(SAVANNA, batch=b, seed=b) for b in (3, 1, 2)]
    for batch in batches:
        batch[:, 3] += 0.4  # mean far above the deviation
    batches[0][:, 3, :20] = float("nan")
    batches[1][0, 3, 0, 0] = float("-inf")
    layer = module(SAVANNA, nodata="zero")
    layer.fit(wrap(b) for b in batches)
    values = np.concatenate([b[:, 3].numpy().ravel() for b in batches]).astype(np.float64)
    values = values[np.isfinite(values)]
    assert float(layer.mean) == pytest.approx(values.mean(), rel=1e-6)
    assert float(layer.std) == pytest.approx(values.std(), rel=1e-5)
    x = images(SAVANNA)
    x[:, 3] = 0.25  # a constant band becomes zero, not NaN
    model = adapted(pl.Frozen(), SAVANNA, input=pl.Inflated("nearest"))
    assert model.fit_normalization([wrap(x)]) is model and model.reflectance.beyond(x).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("batches", "nodata", "says"),
    [
        ([], "error", "empty"),
        ([torch.full((1, 4, 32, 32), float("nan"))], "zero", "B08"),
        ([images(SAVANNA) * 1e4], "error", "expected reflectance"),
    ],
)
def test_fit_refuses_what_it_cannot_use(batches, nodata, says):
    layer = module(SAVANNA, nodata=nodata)
    before = layer.mean.clone()
    with pytest.raises(ValueError, match=says):
        layer.fit(batches)
    assert torch.equal(layer.mean, before)
