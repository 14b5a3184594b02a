"""EMB is a pixel set: radiometry and never geometry. Inflated kernels go by the names of bands."""

import pytest
import torch
from helpers import SAVANNA, SENTINEL2, adapted, images, randomise, shuffle_pixels, tiny_vit

import peftlib as pl
from peftlib.deflect.patch_embedding import PixelSetEncoder
from peftlib.methods.inputs import STARTS, inflated_kernels
from peftlib.sensors.bands import band_set
from peftlib.sensors.reflectance import Reflectance
from peftlib.sensors.spectral_indices import SpectralIndices

BANDS = band_set(SENTINEL2)


def encoder(patch=(8, 8), cells=1, pixels=0) -> PixelSetEncoder:
    """In float64, and off its start, so that x_A is not zero."""
    torch.manual_seed(0)
    indices = SpectralIndices(("NDVI", "NBR"), BANDS)
    return randomise(PixelSetEncoder(indices, 12, 12, patch, pl.EMB(5, cells, pixels=pixels))).double().eval()


def reflectance(size=(32, 32), nodata="error") -> Reflectance:
    return Reflectance(BANDS, size, (0.5,) * 3, (0.2,) * 3, nodata=nodata).double()


def with_gaps(x: torch.Tensor, patch: tuple[int, int], cells: int) -> torch.Tensor:
    """Single bands of single pixels, all of one patch, and all of one cell of another."""
    x = torch.where(torch.rand(x.shape) > 0.02, x, torch.nan)
    x[0, :, : patch[0], : patch[1]] = torch.nan
    x[1, :, : patch[0] // cells, : patch[1] // cells] = torch.nan
    return x


def loops(layer: PixelSetEncoder, how: Reflectance, x: torch.Tensor, patch: tuple[int, int], cells: int):
    """x_A = g([mean, deviation] of f(s) over the valid pixels of each cell), pixel by pixel."""
    s = torch.cat([how.beyond(x), layer.indices(how.filled(x))], dim=1)
    height, width = patch[0] // cells, patch[1] // cells
    tokens = []
    for b in range(len(x)):
        for top in range(0, x.shape[2], patch[0]):
            for left in range(0, x.shape[3], patch[1]):
                codes, anything = torch.zeros(10, cells, cells, dtype=x.dtype), False
                for i in range(cells):
                    for j in range(cells):
                        rows = range(top + i * height, top + (i + 1) * height)
                        columns = range(left + j * width, left + (j + 1) * width)
                        known = [(r, c) for r in rows for c in columns if x[b, :, r, c].isfinite().all()]
                        anything |= bool(known)
                        seen = [layer.pixel_mlp(s[b, :, r, c]) for r, c in known]
                        f = torch.stack(seen) if known else x.new_zeros(1, 5)
                        codes[:, i, j] = torch.cat([f.mean(0), ((f - f.mean(0)).square().mean(0) + 1e-6).sqrt()])
                token = layer.patch_mlp(codes.flatten())
                tokens.append(token if anything else torch.zeros_like(token))
    return torch.stack(tokens).unflatten(0, (len(x), -1))


# --- the pixel set ---


@pytest.mark.parametrize(("size", "patch", "cells"), [((16, 16), (8, 8), 1), ((8, 12), (4, 6), 2)])
@pytest.mark.parametrize("nodata", ["error", "zero"])
def test_loops_formula_and_forward_agree(size, patch, cells, nodata):
    layer, how = encoder(patch, cells), reflectance(size, nodata)
    x = images(size=size).double()
    x = with_gaps(x, patch, cells) if nodata == "zero" else x
    valid = how.valid(x)
    s = torch.cat([how.beyond(x), layer.indices(how.filled(x))], dim=1)
    with torch.no_grad():
        slow = loops(layer, how, x, patch, cells)
        formula = layer.formula(s, None if valid is None else valid.all(1, keepdim=True))
        assert slow.abs().max() > 0.1
        torch.testing.assert_close(formula, slow, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(layer(how, x), formula, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer.float()(how.float(), x.float()), formula.float(), rtol=1e-5, atol=1e-5)


def test_a_model_in_float32_keeps_the_invariance_and_skips_missing_pixels(x):
    """Also with values far from zero, where squares cancel."""
    x[:, [0, *range(4, 13)]] += 0.5
    x[0, 7, 2, 3] = float("nan")  # one band of one pixel
    model = randomise(adapted(pl.Frozen(), input=pl.EMB(), nodata="zero"))
    with torch.no_grad():
        before, after = model.embed_patches(x), model.embed_patches(shuffle_pixels(x, 8))
        torch.testing.assert_close(after[1], before[1], rtol=0, atol=1e-4)
        assert not torch.allclose(after[0], before[0], atol=1e-2)  # x_P sees geometry
        x[0, [0, 3, 8, 12], 2, 3] = 0.9  # what it holds in other bands does not count
        assert torch.equal(model.embed_patches(x)[1], before[1])
        x[0, 12, 2, 4] = 0.9  # its valid neighbour does
        assert not torch.equal(model.embed_patches(x)[1], before[1])


# --- option pixels ---


def test_training_reads_a_subset_of_pixels_drawn_anew_and_evaluation_all():
    layer, how, x = encoder(pixels=7), reflectance(), images().double()
    everything = encoder()(how, x)
    assert torch.equal(layer(how, x), everything)
    layer.train()
    first, second = layer(how, x), layer(how, x)
    assert not torch.allclose(first, second, atol=1e-4) and not torch.allclose(first, everything, atol=1e-4)
    torch.manual_seed(4)
    drawn = torch.randperm(64)[:7]  # the same places in every patch
    torch.manual_seed(4)
    subset = layer(how, x)
    kept = torch.full((64,), torch.nan).index_fill(0, drawn, 0.0).view(8, 8).repeat(4, 4)
    alone = encoder()(reflectance(nodata="zero"), x + kept)
    torch.testing.assert_close(subset, alone, rtol=1e-6, atol=1e-6)
    flat = x[:, :, ::8, ::8].repeat_interleave(8, 2).repeat_interleave(8, 3)  # all pixels of a patch equal
    torch.testing.assert_close(layer(how, flat), encoder()(how, flat), rtol=1e-9, atol=1e-9)
    assert torch.equal(encoder(pixels=64).train()(how, x), everything)  # as many as there are


# --- inflation ---


@pytest.mark.parametrize("bands", [SAVANNA, SENTINEL2[::-1]], ids=["4", "13"])
@pytest.mark.parametrize("start", STARTS)
def test_inflated_kernels(start, bands):
    old, resolved, C = tiny_vit().patch_embed.proj.weight.detach(), band_set(bands), len(bands)
    new = inflated_kernels(old, resolved, start)
    scale = 1.0 if start in ("zero", "random") else 3 / C
    assert new.shape == (32, C, 8, 8)
    torch.testing.assert_close(new[:, :3], old * scale)
    red, green, blue = old.unbind(1)
    for k, i in enumerate(resolved.beyond_rgb):
        got = new[:, 3 + k]
        expected = {
            "zero": torch.zeros_like(red), "repeat": (red, green, blue)[k % 3], "mean": (red + green + blue) / 3,
            "nearest": blue if resolved.names[i] == "B01" else red,
        }  # fmt: skip
        if start == "random":
            assert 0 < got.std() < 1 and (C == 4 or not torch.allclose(got, new[:, 3 + (k + 1) % (C - 3)]))
        else:
            torch.testing.assert_close(got, expected[start] * scale)
