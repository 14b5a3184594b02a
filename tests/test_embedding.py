"""EMB is a pixel set: radiometry and never geometry. Inflated kernels go by the names of bands."""

from typing import NamedTuple

import pytest
import torch
from helpers import SAVANNA, SENTINEL2, adapted, images, randomise, tiny_vit
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import peftlib as pl
from peftlib.backbones.loading import BackboneSpec
from peftlib.deflect.analysis import shuffle_pixels
from peftlib.deflect.patch_embedding import INFLATIONS, PixelSetEncoder, inflate_patch_embed, mapped_moments
from peftlib.sensors.bands import band_set


class Channels(NamedTuple):
    """What stands in for ``peftlib.sensors.reflectance.Channels``, with each reading set by the test."""

    rgb: torch.Tensor
    beyond: torch.Tensor
    reflectance: torch.Tensor
    valid: torch.Tensor | None

    @property
    def x(self) -> torch.Tensor:
        return self.reflectance

    def split(self, images: int) -> list["Channels"]:
        """Image by image: how the batch is split must not matter."""
        valid = [None] * len(self.x) if self.valid is None else self.valid.split(1)
        parts = zip(self.beyond.split(1), self.reflectance.split(1), valid, strict=True)
        return [self._replace(beyond=b, reflectance=r, valid=v) for b, r, v in parts]


def encoder(patch=(8, 8), cells=1, bands=SENTINEL2, indices=("NDVI", "NBR"), seed=0) -> PixelSetEncoder:
    """In float64, and off its start, so that x_A is not zero."""
    torch.manual_seed(seed)
    return randomise(PixelSetEncoder(band_set(bands), indices, dim=12, patch_size=patch, width=5, cells=cells)).double()


def channels(size=(32, 32), bands=SENTINEL2, valid=None, seed=0) -> Channels:
    x = images(bands, size=size, seed=seed).double()
    beyond = list(band_set(bands).beyond_rgb)
    return Channels(x[:, list(band_set(bands).rgb)], (x[:, beyond] - 0.2) * 8, x, valid)


def shuffled(given: Channels, patch: int) -> Channels:
    x = shuffle_pixels(torch.cat([given.beyond, given.reflectance], dim=1), patch, seed=3)
    split = given.beyond.shape[1]
    return given._replace(beyond=x[:, :split], reflectance=x[:, split:])


def reference(layer: PixelSetEncoder, given: Channels, patch: tuple[int, int], cells: int) -> torch.Tensor:
    """x_A = g([mean, deviation] of f(s) over the valid pixels of each cell), with loops over pixels."""
    spectrum = torch.cat([given.beyond, layer.indices(given.reflectance)], dim=1)
    features = layer.pixel_mlp(spectrum.movedim(1, -1)).movedim(-1, 1)
    B, width, H, W = features.shape
    height, across = patch[0] // cells, patch[1] // cells
    tokens = []
    for b in range(B):
        for top in range(0, H, patch[0]):
            for left in range(0, W, patch[1]):
                code = torch.zeros(2 * width, cells, cells, dtype=features.dtype)
                anything = False
                for i in range(cells):
                    for j in range(cells):
                        rows = range(top + i * height, top + (i + 1) * height)
                        columns = range(left + j * across, left + (j + 1) * across)
                        pixels = [
                            features[b, :, r, c]
                            for r in rows
                            for c in columns
                            if given.valid is None or given.valid[b, 0, r, c]
                        ]
                        anything = anything or bool(pixels)
                        pixels = torch.stack(pixels) if pixels else torch.zeros(1, width, dtype=features.dtype)
                        variance = (pixels - pixels.mean(0)).square().mean(0)
                        code[:, i, j] = torch.cat([pixels.mean(0), (variance + 1e-6).sqrt()])
                token = layer.patch_mlp(code.flatten())
                tokens.append(token if anything else torch.zeros_like(token))
    return torch.stack(tokens).unflatten(0, (B, -1))


# --- the pixel set ---


@pytest.mark.parametrize(
    ("size", "patch", "cells"),
    [((16, 16), (8, 8), 1), ((16, 24), (8, 8), 2), ((16, 12), (8, 4), 1), ((8, 12), (4, 6), 2)],
)
@pytest.mark.parametrize("masked", [False, True])
def test_pooled_codes_match_explicit_loops(size, patch, cells, masked):
    valid = None
    if masked:
        valid = (torch.rand(2, 1, *size) > 0.3).double()
        valid[0, :, : patch[0], : patch[1]] = 0  # a whole patch
        valid[1, :, : patch[0] // cells, : patch[1] // cells] = 0  # a whole cell
    layer = encoder(patch, cells)
    given = channels(size, valid=valid)
    with torch.no_grad():
        torch.testing.assert_close(layer(given), reference(layer, given, patch, cells), rtol=1e-6, atol=1e-6)


def test_shuffling_pixels_inside_patches_leaves_x_A():
    layer, given = encoder(), channels()
    moved = shuffled(given, 8)
    assert not torch.equal(moved.beyond, given.beyond)
    torch.testing.assert_close(layer(moved), layer(given), rtol=0, atol=1e-10)


def test_shuffling_across_patches_changes_x_A():
    layer, given = encoder(), channels()
    assert not torch.allclose(layer(shuffled(given, 16)), layer(given), atol=1e-3)


def test_cells_are_sets_of_their_own():
    layer, given = encoder(cells=2), channels()
    torch.testing.assert_close(layer(shuffled(given, 4)), layer(given), rtol=0, atol=1e-10)
    assert not torch.allclose(layer(shuffled(given, 8)), layer(given), atol=1e-3)


def test_a_model_in_float32_keeps_the_invariance(x):
    """Also with the no-data option and values far from zero, where squares cancel."""
    x = x.clone()
    x[:, [0, *range(4, 13)]] += 0.5
    model = randomise(adapted(pl.Deflect(), nodata="zero"))
    with torch.no_grad():
        before = model.embed_patches(model.reflectance(x))
        after = model.embed_patches(model.reflectance(shuffle_pixels(x, 8)))
    torch.testing.assert_close(after[1], before[1], rtol=0, atol=1e-4)
    assert not torch.allclose(after[0], before[0], atol=1e-2)  # x_P sees geometry


def test_x_A_starts_at_zero():
    layer = PixelSetEncoder(band_set(SAVANNA), ("NDVI",), dim=12, patch_size=(8, 8))
    given = channels(bands=SAVANNA)._replace(rgb=None)
    given = given._replace(beyond=given.beyond.float(), reflectance=given.reflectance.float())
    assert torch.equal(layer(given), torch.zeros(2, 16, 12))


def test_x_A_reads_bands_and_indices():
    layer, given = encoder(), channels()
    base = layer(given)
    assert not torch.allclose(layer(given._replace(beyond=given.beyond + 0.1)), base, atol=1e-4)
    darker = given.reflectance.clone()
    darker[:, 3] *= 0.5  # red: only through NDVI
    assert not torch.allclose(layer(given._replace(reflectance=darker)), base, atol=1e-4)
    assert torch.equal(layer(given._replace(rgb=given.rgb * 0)), base)  # never the model's own RGB


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 5), st.floats(-50, 50), st.booleans())
def test_moments_of_any_cells(cells, pixels, width, offset, masked):
    layer = torch.nn.Linear(width, 3).double()
    hidden = torch.randn(cells, pixels, width, dtype=torch.float64) + offset
    valid = torch.ones(cells, pixels, 1, dtype=torch.float64)
    if masked:
        valid[:, : pixels // 2] = 0
    with torch.no_grad():
        mean, std = mapped_moments(hidden, layer, valid if masked else None)
        mapped = layer(hidden)[:, pixels // 2 if masked else 0 :]
    torch.testing.assert_close(mean, mapped.mean(1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(std, (mapped.var(1, unbiased=False) + 1e-6).sqrt(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cells", [0, 3, -1, 1.0, 16])
def test_cells_must_divide_the_patch(cells, vit):
    with pytest.raises(ValueError, match=r"cells"):
        pl.adapt(vit, pl.Deflect(cells=cells), SENTINEL2)


def test_rgb_alone_has_nothing_for_the_pixel_set(vit):
    with pytest.raises(ValueError, match=r"beyond RGB.*B04"):
        pl.adapt(vit, pl.Deflect(), ("B04", "B03", "B02"))


# --- pixels without data ---


def test_a_patch_without_data_has_no_x_A_and_breaks_nothing(x):
    model = randomise(adapted(pl.Deflect(), nodata="zero"))
    x = x.clone()
    x[0, :, :8, 8:16] = float("nan")
    x[1] = float("nan")  # a whole image
    x_A = model.embed_patches(model.reflectance(x))[1]
    assert torch.equal(x_A[0, 1], torch.zeros(32)) and torch.equal(x_A[1], torch.zeros(16, 32))
    assert x_A[0, [0, *range(2, 16)]].abs().amin(dim=0).min() > 0
    tokens = model(x)
    tokens.square().sum().backward()
    assert torch.isfinite(tokens).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_what_a_missing_pixel_holds_in_other_bands_does_not_count(x):
    model = randomise(adapted(pl.Deflect(), nodata="zero"))
    x = x.clone()
    x[0, 7, 2, 3] = float("nan")
    other = x.clone()
    other[0, [0, 3, 8, 12], 2, 3] = 0.9
    a, b = (model.embed_patches(model.reflectance(image))[1] for image in (x, other))
    assert torch.equal(a, b)
    other[0, 12, 2, 4] = 0.9  # its valid neighbour does count
    assert not torch.equal(a, model.embed_patches(model.reflectance(other))[1])


# --- inflation ---


def rgb_kernels(seed=0) -> nn.Module:
    return tiny_vit(seed).patch_embed


@pytest.mark.parametrize("bands", [SAVANNA, ("B8A", "B04", "B01", "B03", "B11", "B02"), SENTINEL2])
@pytest.mark.parametrize("how", INFLATIONS)
def test_inflated_kernels(how, bands):
    embed, old = rgb_kernels(), rgb_kernels().proj
    resolved = band_set(bands)
    inflate_patch_embed(embed, resolved, how)
    new = embed.proj
    C = len(bands)
    assert new.weight.shape == (32, C, 8, 8) and torch.equal(new.bias, old.bias)
    scale = 1.0 if how in ("zero", "random") else 3 / C
    torch.testing.assert_close(new.weight[:, :3], old.weight * scale)
    red, green, blue = old.weight.unbind(1)
    nearest = {"B08": red, "B8A": red, "B11": red, "B12": red, "B05": red, "B06": red, "B07": red, "B09": red}
    nearest |= {"B10": red, "B01": blue}
    for k, i in enumerate(resolved.beyond_rgb):
        got = new.weight[:, 3 + k]
        if how == "zero":
            assert not got.any()
        elif how == "repeat":
            torch.testing.assert_close(got, (red, green, blue)[k % 3] * scale)
        elif how == "mean":
            torch.testing.assert_close(got, (red + green + blue) / 3 * scale)
        elif how == "nearest":
            torch.testing.assert_close(got, nearest[resolved.names[i]] * scale)
        else:
            assert (0 < got.std() < 1 and not torch.allclose(got, new.weight[:, 3 + (k + 1) % (C - 3)])) or C == 4


def test_unknown_inflation_lists_the_choices():
    with pytest.raises(ValueError, match=r"'copy'.*zero.*nearest"):
        inflate_patch_embed(rgb_kernels(), band_set(SAVANNA), "copy")
    with pytest.raises(ValueError, match=r"new_bands='copy'.*ignore.*zero.*nearest"):
        pl.Full(new_bands="copy")


def test_inflation_needs_new_bands(vit):
    with pytest.raises(ValueError, match="none beyond RGB"):
        pl.adapt(vit, pl.LoRA(new_bands="mean"), ("B04", "B03", "B02"))


@pytest.mark.parametrize("how", ["zero", "mean", "nearest"])
def test_the_order_of_channels_does_not_matter(how, x):
    order = torch.randperm(13)
    names = tuple(SENTINEL2[i] for i in order)
    method = pl.Frozen(new_bands=how, train_patch_embed=how == "zero")
    a, b = adapted(method)(x), adapted(method, names)(x[:, order])
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_nearest_kernels_of_a_backbone_that_reads_blue_first(x):
    """A BGR backbone with its kernels mirrored is the same model; so are the two inflated ones."""
    rgb, bgr = tiny_vit(), tiny_vit()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    rgb.spec = BackboneSpec("rgb", mean=mean, std=std)
    bgr.spec = BackboneSpec("bgr", mean=mean[::-1], std=std[::-1], channels="BGR")
    with torch.no_grad():
        bgr.patch_embed.proj.weight.copy_(rgb.patch_embed.proj.weight.flip(1))
    bands, image = ("B02", "B03", "B04", "B01"), x[:, [1, 2, 3, 0]]
    for how in ("ignore", "nearest"):
        a, b = (adapted(pl.Frozen(new_bands=how), bands, vit=v)(image) for v in (rgb, bgr))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
