"""The spectrum on a grid of wavelengths, and the adapter that reads it: any bands, in any order, however many."""

import numpy as np
import pytest
import torch
from helpers import SAVANNA, SENTINEL2, adapted, images, pretrained_tokens, randomise, tuned

import peftlib as pl
from peftlib.sensors.bands import band_set
from peftlib.sensors.wavelengths import KNOTS, resampling, surface_bands

LANDSAT = ("B1", "B2", "B3", "B4", "B5", "B6", "B7")
HLS = ("B02", "B03", "B04", "B8A", "B11", "B12")
MANY = {f"{nm:.0f}nm": float(nm) for nm in np.linspace(400, 2450, 180)}
SENSORS = {"sentinel2": SENTINEL2, "landsat8": LANDSAT, "hls": HLS, "custom": MANY}
EVERY = pytest.mark.parametrize("sensor", SENSORS)
BY_WAVELENGTHS = pl.EMB(spectral="wavelengths", indices=())


def trained(sensor="sentinel2", input=BY_WAVELENGTHS, method=None, **options) -> pl.AdaptedViT:
    """A model off its start, with statistics of its own."""
    model = randomise(adapted(method or pl.Deflect(), SENSORS[sensor], sensor=sensor, input=input, **options))
    return model.fit_normalization([images(SENSORS[sensor], sensor)]).eval()


# --- the matrix ---


def test_the_matrix_is_the_integral_of_the_interpolated_spectrum():
    """Knot by knot, by trapezoids on a finer axis, for one spectrum of Landsat's bands."""
    bands = band_set(LANDSAT, "landsat8")
    spectrum = np.array([0.1, 0.12, 0.2, 0.15, 0.5, 0.3, 0.05])
    axis = np.linspace(np.log(400), np.log(2500), 50_001)
    between = np.interp(axis, np.log(bands.wavelengths), spectrum)
    read = resampling(bands).double().numpy() @ spectrum
    for k, knot in enumerate(np.log(KNOTS)):
        hat = np.clip(1 - np.abs(axis - knot) / np.log(KNOTS[1] / KNOTS[0]), 0, None)
        assert read[k] == pytest.approx((hat * between).sum() / hat.sum(), abs=2e-3)


def test_the_air_and_heat_are_not_read():
    assert set(SENTINEL2) - {SENTINEL2[i] for i in surface_bands(band_set(SENTINEL2))} == {"B09", "B10"}
    every = tuple(pl.SENSORS["landsat8"])
    seen = {every[i] for i in surface_bands(band_set(every, "landsat8"))}
    assert seen == {"B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8"}
    assert not resampling(band_set(SENTINEL2))[:, [9, 10]].any()


# --- the model: any bands give the same parameters and, where they show the same, the same tokens ---


@EVERY
def test_it_starts_as_the_pretrained_model_tunes_as_much_and_learns_on_every_sensor(sensor, vit):
    bands, x = band_set(SENSORS[sensor], sensor), images(SENSORS[sensor], sensor)
    model = adapted(pl.Frozen(), bands, vit, input=BY_WAVELENGTHS)
    torch.testing.assert_close(model(x), pretrained_tokens(vit, x, rgb=bands.rgb), rtol=0, atol=1e-6)
    assert pl.count_parameters(model)["tuned"] == 17 * 32 + 33 * 32 + 2 * 64 + 65 * 64 + 65 * 32
    randomise(model.fit_normalization([x]))(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.auxiliary.parameters())
    if sensor == "custom":  # 180 bands: colours by wavelength
        assert [round(bands.wavelengths[i]) for i in bands.rgb] == [652, 560, 480] and len(bands) == 180
        assert adapted(pl.Frozen(), bands, input=pl.EMB()).auxiliary.pixel_mlp[0].in_features == 177 + 6


def test_the_order_of_bands_does_not_matter():
    model, order = trained(), [12, 3, 0, 8, 2, 1, 11, 4, 6, 5, 7, 10, 9]
    other = pl.transfer(model, tuple(SENTINEL2[i] for i in order))
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(other(x[:, order]), model(x), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(other(x), model(x), atol=1e-2)  # values taken for those of other bands
        again = pl.transfer(model, SENTINEL2)
        assert torch.equal(again(x), model(x)) and again is not model
        assert not torch.equal(randomise(again, seed=4)(x), model(x))  # a copy


# --- transfer ---


@pytest.mark.parametrize("sensor", ["landsat8", "custom"])
def test_an_adapter_reads_every_sensor_and_comes_back_from_disk(sensor, vit, tmp_path):
    model = trained(vit=vit, nodata="zero", method=pl.LoRA())
    there = pl.transfer(model, SENSORS[sensor], sensor)
    x = images(SENSORS[sensor], sensor)
    assert all(torch.equal(there.get_parameter(name), model.get_parameter(name)) for name in tuned(model))
    assert torch.equal(there.reflectance.mean, model.reflectance.mean) and there.training is model.training
    pl.save_adapter(there, tmp_path / "there.safetensors")
    pl.save_adapter(model, tmp_path / "here.safetensors")
    with torch.no_grad():
        tokens = there(x)
        assert torch.isfinite(tokens).all() and not torch.equal(tokens, pretrained_tokens(vit, x, there.bands.rgb))
        assert torch.equal(pl.load_adapter(vit, tmp_path / "there.safetensors")(x), tokens)
        loaded = pl.load_adapter(vit, tmp_path / "here.safetensors")
        assert torch.equal(pl.transfer(loaded, SENSORS[sensor], sensor)(x), tokens)
    there.fit_normalization([x])  # fitted again, on images of the new sensor
    assert there.reflectance.beyond(x).mean((0, 2, 3)).abs().max() < 1e-4
    x[0, 2, 3, 4] = float("nan")  # without one band a pixel has no spectrum
    assert (there.reflectance.beyond(x)[0, :, 3, 4] == 0).all()
    with torch.autocast("cpu", torch.bfloat16):  # differences of bands would be lost
        assert there.reflectance.beyond(x).dtype == torch.float32
    assert not torch.equal(there.reflectance.mean, model.reflectance.mean)


def test_indices_go_where_their_bands_are():
    model = trained(input=pl.EMB(spectral="wavelengths", indices=("NDVI", "NBR")))
    assert model.auxiliary.pixel_mlp[0].in_features == 18
    x = images(LANDSAT, "landsat8")
    there = pl.transfer(model, LANDSAT, "landsat8")
    with torch.no_grad():
        ndvi = (x[:, 4] - x[:, 3]) / (x[:, 4] + x[:, 3])
        torch.testing.assert_close(there.auxiliary.indices(x)[:, 0], ndvi)
        assert torch.isfinite(there(x)).all()
    with pytest.raises(ValueError, match=r"NBR.*S2"):
        pl.transfer(model, SAVANNA)


@pytest.mark.parametrize("input", [pl.EMB(), pl.Inflated("mean")], ids=str)
def test_what_belongs_to_its_bands_is_refused(input):
    model = adapted(pl.LoRA(), input=input)
    with pytest.raises(ValueError, match=r"bands .*B8A.*wavelengths"):
        pl.transfer(model, LANDSAT, "landsat8")
    colours, x = trained(input=pl.RGB(), method=pl.LoRA()), images()  # which belong to no sensor
    with torch.no_grad():
        there = pl.transfer(colours, HLS, "hls")
        assert torch.equal(there(x[:, [SENTINEL2.index(band) for band in HLS]]), colours(x))
