"""Time series: their channels, and an encoder to which dates are a set, or a sequence. What every input promises
(start, gradients, files, one graph) is in test_registry."""

import math

import pytest
import torch
from helpers import adapted, pretrained_tokens, randomise
from hypothesis import given
from hypothesis import strategies as st

import peftlib as pl
from peftlib.deflect.time_series import SeriesEMB, best_date, series_bands, stack
from peftlib.sensors.bands import band_set
from peftlib.sensors.wavelengths import resampling

BANDS = ("B02", "B03", "B04", "B08", "B11")
ONE = band_set(BANDS)
BOTH = pytest.mark.parametrize("order", ["set", "sequence"])


def dates(count: int = 3, seed: int = 0) -> torch.Tensor:
    return 0.05 + 0.4 * torch.rand(count, len(BANDS), 32, 32, generator=torch.Generator().manual_seed(seed))


def series(images: torch.Tensor, days=(100, 160, 220, 280)) -> torch.Tensor:
    return stack(images, days[: len(images)], BANDS)[None]


def model_for(order: str = "set", count: int = 3, method=None, emb=None, **options) -> pl.AdaptedViT:
    input = SeriesEMB(order=order, **emb or {})
    return randomise(adapted(method or pl.Deflect(), series_bands(BANDS, count), input=input, **options)).eval()


def x_A(model: pl.AdaptedViT, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.embed_patches(x)[1]


# --- channels ---


def test_channels_are_the_best_date_then_every_date_with_its_day():
    bands = series_bands(("B02", "B03", "B04", "B08"), 2)
    each = ("B02", "B03", "B04", "B08", "cos", "sin")
    assert bands.names == ("B04", "B03", "B02", *(f"{n}@1" for n in each), *(f"{n}@2" for n in each))
    assert bands.rgb == (0, 1, 2) and len(bands.beyond_rgb) == 12 and bands.dates == 2
    assert bands.wavelengths[3] == bands.wavelengths[9] == 492.4 and math.isnan(bands.wavelengths[-1])
    assert bands.one.names == each[:4] and bands.one.rgb == (2, 1, 0) and bands.thermal == ()
    assert len(series_bands(BANDS, 2, day=False)) == 3 + 2 * 5


def test_a_stack_holds_what_was_given():
    images = dates()
    images[0, 0] += 0.3  # hazy: much blue
    images[2, 0] += 0.2
    x = stack(images, (91.3125, 182.625, 365.25), BANDS)
    assert x.shape == (3 + 3 * 7, 32, 32)
    torch.testing.assert_close(x[:3], images[1, [2, 1, 0]])  # red, green, blue of the clearest date
    of_dates = x[3:].unflatten(0, (3, 7))
    torch.testing.assert_close(of_dates[:, :5], images)
    for day, expected in zip(of_dates[:, 5:, 0, 0].tolist(), ((0.5, 1.0), (0.0, 0.5), (1.0, 0.5)), strict=True):
        assert day == pytest.approx(expected, abs=1e-6)  # a quarter, half, and the whole year


def test_the_best_date_has_most_data_then_least_blue():
    images = dates()
    images[1, 0] *= 0.5
    assert best_date(images, ONE) == 1
    images[1, :, :4] = torch.nan
    images[0, 0] *= 0.9
    assert best_date(images, ONE) == 0
    assert best_date(torch.full_like(images, torch.nan), ONE) in range(3)  # nothing anywhere: any of them


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: series_bands(BANDS, 0), "at least 1"),
        (lambda: series_bands((*BANDS, "B99"), 2), "unknown sentinel2 bands"),
        (lambda: stack(dates(2), (1, 2, 3), BANDS), "3 days"),
        (lambda: stack(dates(2)[:, :4], (1, 2), BANDS), "T and C"),
        (lambda: adapted(pl.Frozen(), BANDS, input=SeriesEMB()), "series_bands"),
        (lambda: band_set(("B02", "B03", "B04", "B08@1")), r"unknown sentinel2 bands \['B08@1'\]"),
    ],
)
def test_impossible_series_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


# --- the encoder ---


@given(order=st.permutations(range(4)), count=st.integers(2, 4))
def test_a_set_of_dates_has_no_order_and_a_sequence_has(order, count):
    order = [i for i in order if i < count]
    images, days = dates(count), [60, 120, 200, 300][:count]
    x, y = series(images, days), series(images[order], [days[i] for i in order])
    for kind, same in (("set", True), ("sequence", order == sorted(order))):
        model = model_for(kind, count)
        assert torch.allclose(x_A(model, x), x_A(model, y), atol=1e-5) == same


def test_dates_and_pixels_without_data_are_as_if_they_were_not_there():
    images = dates()
    clouded = torch.cat([images, torch.full_like(images[:1], torch.nan)])
    four, three, two = (model_for(count=count, nodata="zero") for count in (4, 3, 2))
    for other in (four, two):
        other.auxiliary.load_state_dict(three.auxiliary.state_dict())
    torch.testing.assert_close(x_A(four, series(clouded)), x_A(three, series(images)), rtol=1e-5, atol=1e-5)
    images[1, :, :8, :8] = torch.nan  # one patch of one date
    got, others = x_A(three, series(images)), x_A(two, stack(images[[0, 2]], (100, 220), BANDS)[None])
    torch.testing.assert_close(got[:, 0], others[:, 0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(got[:, 1], others[:, 1])
    assert not x_A(three, series(torch.full_like(images, torch.nan))).any()


@BOTH
def test_days_matter_and_can_be_left_out(order):
    images, model = dates(), model_for(order)
    assert not torch.allclose(x_A(model, series(images)), x_A(model, series(images, (20, 160, 220))), atol=1e-4)
    without = series_bands(BANDS, 3, day=False)
    x = series(images)[:, [i for i, name in enumerate(series_bands(BANDS, 3)) if name in without.names]]
    assert torch.isfinite(randomise(adapted(pl.Frozen(), without, input=SeriesEMB(order=order)))(x)).all()
    fewer = model_for(order, emb={"pixels": 20}).train()  # drawn among the pixels of all dates, or of places
    assert fewer.auxiliary.set_size == (3 * 64 if order == "set" else 64)
    assert not torch.allclose(x_A(fewer, series(images)), x_A(fewer, series(images)), atol=1e-4)


def test_other_inputs_read_dates_as_bands_and_rgb_the_best_date(vit):
    images, bands = dates(), series_bands(BANDS, 3)
    expected = pretrained_tokens(vit, images[best_date(images, ONE)][None], rgb=ONE.rgb)
    torch.testing.assert_close(adapted(pl.Frozen(), bands, vit=vit)(series(images)), expected, rtol=0, atol=1e-6)
    model = adapted(pl.LoRA(), bands, input=pl.Inflated("mean"))
    assert model.normalize(series(images)).shape[1] == 3 + 3 * 7 and torch.isfinite(model(series(images))).all()
    assert torch.isfinite(randomise(adapted(pl.LoRA(), bands, input=pl.EMB()))(series(images))).all()
    assert not resampling(bands)[:, [8, 9, 15, 16]].any()  # days have no wavelength


@BOTH
@pytest.mark.parametrize("nodata", ["error", "zero"])
def test_a_slow_encoder_says_the_same(order, nodata):
    """Every pixel and date through the MLP one by one, indices by their formulas, moments by ``torch``."""
    model, images, days = model_for(order, emb={"indices": ("NDVI",)}, nodata=nodata), dates(), (100, 160, 220)
    encoder, how, codes = model.auxiliary, model.reflectance, []
    mean, std = how.mean.flatten()[:7], how.std.flatten()[:7]
    gone = {(1, y, x) for y in range(4) for x in range(8)} if nodata == "zero" and order == "set" else set()
    for date, y, x in gone:
        images[date, :, y, x] = torch.nan
    for y in range(8):
        for x in range(8):
            read = []
            for number, (date, day) in enumerate(zip(images, days, strict=True)):
                angle = 2 * math.pi * day / 365.25
                values = torch.cat([date[:, y, x], torch.tensor([1 + math.cos(angle), 1 + math.sin(angle)]) / 2])
                red, near = date[2, y, x], date[3, y, x]
                if (number, y, x) not in gone:
                    read.append(torch.cat([(values - mean) / std, ((near - red) / (near + red))[None]]))
            codes += [encoder.pixel_mlp(s) for s in ([torch.cat(read)] if order == "sequence" else read)]
    codes = torch.stack(codes)
    code = torch.cat([codes.mean(0), (codes.var(0, correction=0) + 1e-6).sqrt()])
    found = x_A(model, series(images))
    torch.testing.assert_close(found[0, 0], encoder.patch_mlp(code), rtol=1e-4, atol=1e-5)


def test_dates_share_the_statistics_of_a_band():
    images, bands = dates(), series_bands(BANDS, 3)
    mean, std = bands.statistics()
    assert torch.equal(mean[3:8], ONE.statistics()[0]) and torch.equal(std[3:10], std[10:17])
    x = series(images)
    model = adapted(pl.Deflect(), bands, input=SeriesEMB()).fit_normalization([x, x])
    fitted = model.reflectance.mean.flatten().unflatten(0, (3, 7))
    torch.testing.assert_close(fitted[1, :5], images.movedim(1, 0).flatten(1).mean(1))  # over pixels of all dates
    assert torch.equal(fitted[0], fitted[1]) and torch.equal(fitted[0], fitted[2])
    assert model.reflectance.beyond(x).unflatten(1, (3, 7)).mean((0, 1, 3, 4)).abs().max() < 1e-4
