"""Time series: their channels, and an encoder to which dates are a set, or a sequence."""

import math

import pytest
import torch
from helpers import SENTINEL2, adapted, randomise, tiny_vit
from hypothesis import given
from hypothesis import strategies as st

import peftlib as pl
from peftlib.deflect.time_series import best_date, series_bands, stack
from peftlib.methods import method_from
from peftlib.sensors.bands import DAY, band_set

BANDS = ("B02", "B03", "B04", "B08", "B11")
ONE = band_set(BANDS)
SET, SEQUENCE = pl.Deflect(), pl.Deflect(series="sequence")


def dates(count: int = 3, seed: int = 0, bands=BANDS, size: int = 32) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 0.05 + 0.4 * torch.rand(count, len(bands), size, size, generator=draw)


def series(images: torch.Tensor, days=(100, 160, 220, 280)) -> torch.Tensor:
    return stack(images, days[: len(images)], BANDS)[None]


def model_for(method=SET, count: int = 3, **options):
    return randomise(adapted(method, series_bands(BANDS, count), **options)).eval()


# --- channels ---


def test_channels_are_the_best_date_then_every_date_with_its_day():
    names = series_bands(("B02", "B03", "B04", "B08"), 2)
    each = ("B02", "B03", "B04", "B08", "cos", "sin")
    assert names == ("B04", "B03", "B02", *(f"{n}@1" for n in each), *(f"{n}@2" for n in each))
    bands = band_set(names)
    assert bands.dates == 2 and bands.rgb == (0, 1, 2) and len(bands.beyond_rgb) == 12
    assert bands.wavelengths[3] == bands.wavelengths[9] == 492.4 and math.isnan(bands.wavelengths[-1])
    assert bands.of_one_date.names == each and bands.of_one_date.rgb == (2, 1, 0)
    assert band_set(SENTINEL2).dates == 0 and band_set(SENTINEL2).of_one_date == band_set(SENTINEL2)
    assert not any(name.startswith(DAY) for name in series_bands(BANDS, 2, day=False))


def test_a_stack_holds_what_was_given():
    images = dates()
    images[0, 0] += 0.3  # hazy: much blue
    images[2, 0] += 0.2
    x = stack(images, (91.3125, 182.625, 365.25), BANDS)
    assert x.shape == (3 + 3 * 7, 32, 32)
    torch.testing.assert_close(x[:3], images[1, [2, 1, 0]])  # red, green, blue of the clearest date
    of_dates = x[3:].unflatten(0, (3, 7))
    torch.testing.assert_close(of_dates[:, :5], images)
    quarter, half, whole = of_dates[:, 5:, 0, 0].tolist()
    for day, expected in ((quarter, (0.5, 1.0)), (half, (0.0, 0.5)), (whole, (1.0, 0.5))):
        assert day == pytest.approx(expected, abs=1e-6)


def test_the_best_date_has_most_data_then_least_blue():
    images = dates()
    images[1, 0] *= 0.5
    assert best_date(images, ONE) == 1
    images[1, :, :4] = torch.nan
    images[0, 0] *= 0.9
    assert best_date(images, ONE) == 0
    assert best_date(torch.full_like(images, torch.nan), ONE) in range(3)  # nothing anywhere: any of them


@pytest.mark.parametrize(
    "names",
    [
        ("B04", "B03", "B02", "B08@1"),  # a date without red, green and blue
        ("B02", "B03", "B04", *series_bands(BANDS, 2)[3:]),
        series_bands(BANDS, 2)[:-1],
        (*series_bands(BANDS, 2)[:3], *reversed(series_bands(BANDS, 2)[3:])),
        tuple(name.replace("@2", "@3") for name in series_bands(BANDS, 2)),
    ],
    ids=["no colours", "other colours first", "a channel short", "dates backwards", "a date left out"],
)
def test_other_channels_are_refused(names):
    with pytest.raises(ValueError, match=r"lack|series_bands makes the names"):
        band_set(names)


def test_impossible_series_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        series_bands(BANDS, 0)
    with pytest.raises(ValueError, match="unknown sentinel2 bands"):
        series_bands((*BANDS, "B99"), 2)
    with pytest.raises(ValueError, match="with 3 days"):
        stack(dates(2), (1, 2, 3), BANDS)
    with pytest.raises(ValueError, match="reads one date"):
        adapted(pl.Deflect(spectral="wavelengths"), series_bands(BANDS, 2))
    with pytest.raises(ValueError, match="series='list'"):
        pl.Deflect(series="list")


# --- the encoder ---


@pytest.mark.parametrize("method", [SET, SEQUENCE], ids=str)
def test_it_starts_as_the_pretrained_model_on_the_best_date(method):
    images = dates()
    x = series(images)
    fresh, plain = adapted(method, series_bands(BANDS, 3)).eval(), adapted(pl.Frozen(), BANDS).eval()
    with torch.no_grad():
        assert torch.equal(fresh(x), plain(images[best_date(images, ONE)][None]))


@given(order=st.permutations(range(4)), count=st.integers(2, 4))
def test_a_set_of_dates_has_no_order_and_a_sequence_has(order, count):
    order = [i for i in order if i < count]
    images, days = dates(count), [60, 120, 200, 300][:count]
    x, y = series(images, days), series(images[order], [days[i] for i in order])
    for method, same in ((SET, True), (SEQUENCE, order == sorted(order))):
        model = model_for(method, count)
        with torch.no_grad():
            one, other = (model.auxiliary(model.reflectance(image)) for image in (x, y))
        assert torch.allclose(one, other, atol=1e-5) == same


def test_pixels_of_a_patch_may_change_places_together_on_all_dates():
    model, x = model_for(), series(dates())
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    shuffled = x.clone()
    shuffled[:, :, :8, :8] = x[:, :, :8, :8].flatten(2)[:, :, order].unflatten(2, (8, 8))
    with torch.no_grad():
        one, other = (model.auxiliary(model.reflectance(image)) for image in (x, shuffled))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_date_without_data_is_as_if_it_were_not_there():
    images = dates()
    clouded = torch.cat([images, torch.full_like(images[:1], torch.nan)])
    four, three = (model_for(count=count, nodata="zero") for count in (4, 3))
    four.load_state_dict(three.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(four(series(clouded)), three(series(images)), rtol=1e-5, atol=1e-5)


def test_pixels_without_data_on_one_date_are_left_out_there_alone():
    images = dates()
    images[1, :, :8, :8] = torch.nan  # one patch
    model = model_for(nodata="zero")
    with torch.no_grad():
        x_A = model.auxiliary(model.reflectance(series(images)))
        less = model_for(count=2, nodata="zero")
        less.load_state_dict(model.state_dict())
        others = less.auxiliary(less.reflectance(stack(images[[0, 2]], (100, 220), BANDS)[None]))
        everywhere = torch.full_like(images, torch.nan)
        nothing = model.auxiliary(model.reflectance(series(everywhere)))
    torch.testing.assert_close(x_A[:, 0], others[:, 0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(x_A[:, 1], others[:, 1])
    assert not nothing.any()


@pytest.mark.parametrize("method", [SET, SEQUENCE], ids=str)
def test_days_matter_and_can_be_left_out(method):
    images = dates()
    model = model_for(method)
    with torch.no_grad():
        assert not torch.allclose(model(series(images)), model(series(images, (20, 160, 220))), atol=1e-4)
    without = series_bands(BANDS, 3, day=False)
    x = series(images)[:, [i for i, name in enumerate(series_bands(BANDS, 3)) if name in without]]
    assert torch.isfinite(randomise(adapted(method, without))(x)).all()


def test_a_slow_encoder_says_the_same():
    """Every pixel and date through the MLP one by one, indices by their formulas, moments by ``torch``."""
    model, images, days = model_for(pl.Deflect(indices=("NDVI",))), dates(), (100, 160, 220)
    encoder, how = model.auxiliary, model.reflectance
    codes = []
    for y in range(8):
        for x in range(8):
            for date, day in zip(images, days, strict=True):
                angle = 2 * math.pi * day / 365.25
                values = torch.cat([date[:, y, x], torch.tensor([1 + math.cos(angle), 1 + math.sin(angle)]) / 2])
                standard = (values - how.mean.flatten()) / how.std.flatten()
                red, near = date[2, y, x], date[3, y, x]
                codes.append(encoder.pixel_mlp(torch.cat([standard, ((near - red) / (near + red))[None]])))
    codes = torch.stack(codes)
    code = torch.cat([codes.mean(0), (codes.var(0, correction=0) + 1e-6).sqrt()])
    with torch.no_grad():
        found = encoder(how(series(images)))
        torch.testing.assert_close(found[0, 0], encoder.patch_mlp(code), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [SET, SEQUENCE], ids=str)
def test_every_tensor_learns_and_the_file_brings_it_back(method, tmp_path):
    model, x = model_for(method).train(), series(dates())
    model.fit_normalization([x])
    model(x).square().mean().backward()
    tuned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and p.grad.any() for p in tuned.values())
    pl.save_adapter(model, tmp_path / "adapter.safetensors")
    again = pl.load_adapter(tiny_vit(), tmp_path / "adapter.safetensors").eval()
    assert again.bands == model.bands and again.method == method
    with torch.no_grad():
        assert torch.equal(again(x), model.eval()(x))


def test_dates_share_the_statistics_of_a_band():
    images = dates()
    x = series(images)
    model = adapted(SET, series_bands(BANDS, 3)).fit_normalization([x, x])
    torch.testing.assert_close(model.reflectance.mean.flatten()[:5], images.movedim(1, 0).flatten(1).mean(1))
    assert model.reflectance.mean.shape == (7, 1, 1)
    beyond = model.reflectance(x).beyond
    assert beyond.shape == (1, 21, 32, 32) and beyond.unflatten(1, (3, 7)).mean((0, 1, 3, 4)).abs().max() < 1e-4


@pytest.mark.parametrize("name", [name for name in pl.METHODS if name != "deflect"])
def test_other_methods_read_dates_as_bands(name):
    options = {"new_bands": "mean", "train_patch_embed": True} if name != "frozen" else {"new_bands": "mean"}
    model = adapted(method_from(name, options), series_bands(BANDS, 3))
    x = series(dates())
    assert model.normalize(x).shape[1] == 3 + 3 * 7 and torch.isfinite(model(x)).all()


@pytest.mark.parametrize("method", [SET, SEQUENCE], ids=str)
def test_it_compiles_and_autocasts(method):
    model, x = model_for(method, nodata="zero"), series(dates())
    torch.compiler.reset()
    with torch.no_grad():
        expected = model(x)
        again = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x)
    torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-4)
    assert torch.isfinite(rough).all()
