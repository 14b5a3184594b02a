"""Odd numbers: pixels without data, constant bands, nothing to learn from, 16 bits, tokens that do not move."""

import math
from functools import cache, partial
from itertools import product

import pytest
import torch
from helpers import SAVANNA, SENTINEL2, adapted, images, randomise
from hypothesis import given
from hypothesis import strategies as st
from toy_data import Toy

import peftlib as pl
from peftlib.data.datamodule import EarthData
from peftlib.deflect.attention import constrain_norm, inverse_deviation
from peftlib.deflect.patch_embedding import mapped_moments
from peftlib.sensors.reflectance import FARTHEST, POSSIBLE
from peftlib.training.augmentation import resize_image
from peftlib.training.fit import fit
from peftlib.training.metrics import label_metrics, mask_metrics, multilabel_metrics
from peftlib.training.tasks import Classification, Segmentation

NAN, INF = math.nan, math.inf
CLASSES = ("a", "b", "c")
WAVELENGTHS = pl.Deflect(spectral="wavelengths", low_rank_principal=2, cells=2)


def reading_all(name: str):
    """A method that reads the bands beyond RGB, and trains what reads them if it can."""
    if name == "deflect":
        return pl.Deflect()
    trained = {} if name == "frozen" else {"train_patch_embed": True}
    return pl.METHODS[name](new_bands="zero" if name in ("full", "patch_embed") else "mean", **trained)


METHODS = {name: reading_all(name) for name in pl.METHODS} | {"deflect-wavelengths": WAVELENGTHS}
EVERY = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def model_for(method, bands=SENTINEL2, nodata: str = "zero") -> pl.AdaptedViT:
    return randomise(adapted(method, bands, nodata=nodata))


kept = cache(model_for)  # for tests that only look


def assert_trains(model: pl.AdaptedViT, x, autocast: torch.dtype | None = None) -> None:
    """Tokens, loss and gradients are finite, and so are all parameters after a step."""
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        tokens = model.train()(x)
    loss = tokens.float().square().mean()
    assert tokens.isfinite().all() and loss.isfinite()
    tuned = [p for p in model.parameters() if p.requires_grad]
    if tuned:
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in tuned)
        torch.optim.SGD(tuned, lr=1e-3).step()
        assert all(p.isfinite().all() for p in tuned)


# --- pixels without data ---


@EVERY
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_pixels_without_data_are_refused_with_the_name_of_their_band(method, value):
    x = images()
    x[1, 7, 3, 4] = value
    with pytest.raises(ValueError, match=r"NaN or infinite.*'B08': 1.*nodata='zero'"):
        kept(method, nodata="error")(x)


@EVERY
@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.001, 0.1, 0.9, 1.0]), whole=st.booleans())
def test_what_lies_under_a_pixel_without_data_never_matters(method, seed, share, whole):
    """Whether all bands of a pixel lack data or one: NaN, infinity and minus infinity are the same."""
    model, draw = kept(method), torch.Generator().manual_seed(seed)
    x = images(seed=seed)
    gone = torch.rand(2, 1 if whole else 13, 32, 32, generator=draw) <= share
    with torch.no_grad():
        tokens = [model(torch.where(gone, value, x)) for value in (NAN, INF, -INF)]
        assert tokens[0].isfinite().all()
        assert torch.equal(tokens[1], tokens[0]) and torch.equal(tokens[2], tokens[0])
        assert share < 0.1 or not torch.equal(model(x), tokens[0])


@pytest.mark.parametrize("size", [(24, 40), (64, 64), (80, 20)])
def test_resizing_spreads_every_kind_of_no_data_alike(size):
    x = images(size=(48, 48))
    x[0, 5, 10:13, 20], x[1, :, 4, 4] = NAN, NAN
    small = [resize_image(torch.where(x.isnan(), value, x), size).isfinite() for value in (NAN, INF, -INF)]
    assert not small[0].all() and torch.equal(small[1], small[0]) and torch.equal(small[2], small[0])


@EVERY
@pytest.mark.parametrize("where", ["everywhere", "an image", "a band", "a patch", "red alone"])
def test_images_without_data_train_with_finite_numbers(method, where):
    x = images()
    part = {
        "everywhere": x, "an image": x[0], "a band": x[:, 7], "a patch": x[..., :8, :8], "red alone": x[:, 3]
    }[where]  # fmt: skip
    part[:] = NAN
    assert_trains(model_for(method), x)


# --- constant and extreme images ---


@EVERY
@pytest.mark.parametrize("kind", ["a constant band", "all zero", "all one"])
def test_constant_images_read_as_zero_and_train_with_finite_numbers(method, kind):
    x = images()
    if kind == "a constant band":
        x[:, 7] = 0.1
    else:
        x[:] = 0.0 if kind == "all zero" else 1.0
    model = model_for(method).fit_normalization([x])
    read = model.reflectance(x).beyond
    if kind == "a constant band":
        read = read[:, model.bands.beyond_rgb.index(7)] if method is not WAVELENGTHS else read[:, :0]
    assert not (read.abs() > 1e-4).any()
    assert_trains(model, x)


def extreme_images():
    """As many values at both ends of what may be reflectance as the check lets pass, in every band."""
    x, draw = images(), torch.rand(2, 13, 32, 32, generator=torch.Generator().manual_seed(1))
    low, high = POSSIBLE
    return torch.where(draw < 0.02, low, torch.where(draw < 0.04, high, x))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_band_that_was_nearly_constant_cannot_overflow(method, dtype):
    """Fitted with two values, a digital number apart, it meets others: a million deviations off, but for the limit."""
    seen, x = images(), extreme_images()
    seen[:, 7] = 0.1
    seen[0, 7, 0, 0] = 0.1001
    model = model_for(method).fit_normalization([seen]).to(dtype)
    if method is not WAVELENGTHS:  # which reads no band by itself
        assert model.reflectance(x.to(dtype)).beyond.abs().max() > 0.9 * FARTHEST
    with torch.no_grad():
        assert model(x.to(dtype)).isfinite().all()


# --- 16 bits ---


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_models_of_every_precision_train_on_extreme_values(method, dtype):
    assert_trains(model_for(method).to(dtype), extreme_images().to(dtype))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_trains_on_extreme_values(method, dtype):
    assert_trains(model_for(method), extreme_images(), autocast=dtype)


def test_squares_of_large_pixels_do_not_overflow_in_float16():
    hidden = torch.randn(3, 16, 4) * torch.tensor([1.0, 1e3, 1.5e4]).view(3, 1, 1)
    layer = torch.nn.Linear(4, 6)
    exact = mapped_moments(hidden.half().double(), layer.half().double())
    for found, expected in zip(mapped_moments(hidden.half(), layer.half()), exact, strict=True):
        assert found.isfinite().all()
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-2)


def test_pixels_without_any_deviation_have_finite_gradients():
    hidden, layer = torch.zeros(2, 16, 4, requires_grad=True), torch.nn.Linear(4, 6)
    torch.cat(mapped_moments(hidden, layer)).sum().backward()
    assert hidden.grad.isfinite().all() and layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_scale_of_a_token_has_its_gradient_in_every_precision(dtype):
    """Of a constant token it is 0; of a token of small deviation the cube in it passes what float16 holds."""
    z = 0.01 * torch.randn(1, 4, 32)
    z[0, 0] = 0.5
    z = z.to(dtype).requires_grad_()
    wide = z.detach().double().requires_grad_()
    inverse_deviation(z, 1e-6).sum().backward()
    inverse_deviation(wide, 1e-6).sum().backward()
    assert z.grad.isfinite().all() and not z.grad[0, 0].any()
    rtol = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
    torch.testing.assert_close(z.grad.double(), wide.grad, rtol=rtol, atol=rtol * float(wide.grad.abs().max()))


# --- tokens that do not move ---


@pytest.mark.parametrize("reference_grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tokens_that_do_not_move_have_finite_gradients(dtype, reference_grad):
    D, D_ref = (torch.randn(2, 4, 8, dtype=torch.float64).to(dtype) for _ in range(2))
    D[0, 0] = D[0, 2] = 0
    D_ref[0, 1] = D_ref[0, 2] = 0
    D.requires_grad_(), D_ref.requires_grad_()
    out = constrain_norm(D, D_ref, reference_grad)
    assert not out[0, :3].any() and out[0, 3].any()
    (out * torch.randn(2, 4, 8).to(dtype)).sum().backward()
    assert D.grad.isfinite().all() and D.grad[0, 0].any() and not D.grad[0, 1].any()
    assert D_ref.grad is None if not reference_grad else D_ref.grad.isfinite().all() and D_ref.grad[0, 3].any()


OPTIONS = {
    "constrain": (True, False), "reference_grad": (True, False), "low_rank_principal": (0, 2),
    "layers": ("all", (1,)), "cells": (1, 2), "spectral": ("bands", "wavelengths"),
}  # fmt: skip
COMBINATIONS = [dict(zip(OPTIONS, values, strict=True)) for values in product(*OPTIONS.values())]


@pytest.mark.parametrize("still", ["pretrained", "both"])
@pytest.mark.parametrize("options", COMBINATIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_every_deflect_keeps_still_tokens_still(options, still):
    """With values of 0 the pretrained block moves nothing, and so must not the constrained one; with an output of 0
    no block moves anything."""
    model = model_for(pl.Deflect(**options))
    x = images(batch=1)
    z, z_A = (part.detach() for part in model.embed(x))
    for block in model.vit.blocks:
        own = getattr(block, "block", block)
        with torch.no_grad():
            own.attn.proj.bias.zero_()
            own.attn.qkv.weight[64:] = 0
            own.attn.qkv.bias[64:] = 0
            if still == "both":
                own.attn.proj.weight.zero_()
        if own is not block:
            moved = block.displacement(z, z_A)
            assert moved.any() == (still == "pretrained" and not options["constrain"])
    assert_trains(model, x)


# --- batches that teach little ---


def batch(n: int = 2, **changed) -> dict:
    x = images(SAVANNA, batch=n)
    return {"image": x, "label": torch.zeros(n).long(), "mask": torch.zeros(n, 32, 32).long()} | changed


@EVERY
def test_a_batch_without_a_known_pixel_changes_nothing_but_by_weight_decay(method):
    task = Segmentation(model_for(method, SAVANNA), CLASSES, weight_decay=0.1).train()
    before = {name: p.detach().clone() for name, p in task.named_parameters() if p.requires_grad}
    optimiser = task.configure_optimizers()
    loss = task.training_step(batch(mask=torch.full((2, 32, 32), -1)), 0)
    assert float(loss.detach()) == 0
    loss.backward()
    optimiser.step()
    for name, p in task.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.detach(), before[name] * (1 - 1e-3 * 0.1), msg=name)


@EVERY
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("make", [Segmentation, Classification, partial(Classification, multilabel=True)])
def test_batches_of_one_class_and_of_one_image_have_finite_gradients(method, make, n):
    """Of many labels: of no class at all."""
    task = make(model_for(method, SAVANNA), CLASSES).train()
    loss = task.training_step(batch(n, label=torch.zeros(n, 3)) if isinstance(make, partial) else batch(n), 0)
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.parameters())


def scores(metrics, predicted, truth) -> dict[str, float]:
    metrics.update(predicted, truth)
    return {name: float(value) for name, value in metrics.compute().items()}


def test_scores_over_nothing_are_nan_and_over_one_class_are_numbers():
    nothing = scores(mask_metrics(CLASSES, -1), torch.zeros(1, 4, 4).long(), torch.full((1, 4, 4), -1))
    assert len(nothing) == 7 and all(math.isnan(value) for value in nothing.values())
    right = scores(mask_metrics(CLASSES, -1), torch.zeros(1, 4, 4).long(), torch.zeros(1, 4, 4).long())
    assert {name for name, value in right.items() if math.isnan(value)} == {"iou_b", "iou_c"}
    assert {value for value in right.values() if not math.isnan(value)} == {1.0}
    wrong = scores(label_metrics(CLASSES), torch.tensor([1]), torch.tensor([2]))
    assert wrong == dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1"), 0.0)


@pytest.mark.parametrize(
    ("p", "label", "expected"),
    [
        (0.1, 0, dict(map=NAN, micro_map=NAN, macro_f1=NAN, micro_f1=NAN)),  # nothing there, nothing found
        (0.9, 0, dict(map=NAN, micro_map=NAN, macro_f1=0.0, micro_f1=0.0)),  # all that was found is wrong
        (0.9, 1, dict(map=1.0, micro_map=1.0, macro_f1=1.0, micro_f1=1.0)),
        (0.1, 1, dict(map=1.0, micro_map=1.0, macro_f1=0.0, micro_f1=0.0)),
    ],
)
def test_scores_of_many_labels_need_a_positive(p, label, expected):
    found = scores(multilabel_metrics(CLASSES), torch.full((2, 3), p), torch.full((2, 3), label))
    assert found == pytest.approx(expected, nan_ok=True)


# --- whole trainings ---


class Odd(Toy):
    """Of three images one without any data or label, one that is zero throughout, and one as it should be."""

    def __getitem__(self, i: int) -> dict:
        sample = super().__getitem__(i)
        if i < 2:
            sample["image"][:] = NAN if i == 0 else 0.0
            sample["mask"][:] = -1 if i == 0 else 0
        return sample


@EVERY
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_three_steps_of_fit_on_odd_images_leave_finite_numbers(method, precision, tmp_path):
    data = EarthData(Odd(3), Toy(1, seed=1), Odd(3, seed=2), batch_size=1)
    model = model_for(method, SAVANNA).fit_normalization(data.train_dataloader())
    task = Segmentation(model, CLASSES, lr=1e-2)
    found = fit(task, data, tmp_path, epochs=1, precision=precision, accelerator="cpu")
    assert len(task.losses) == 3 and all(math.isfinite(loss) for loss in task.losses)
    assert all(p.isfinite().all() for p in task.parameters())
    nan = {name for part in found.values() for name, value in part.items() if math.isnan(value)}
    assert nan <= {"iou_c"}  # a class that neither occurs nor is predicted


@EVERY
def test_an_epoch_of_one_image_trains(method, tmp_path):
    data = EarthData(Toy(1), Toy(1), batch_size=4)
    task = Classification(model_for(method, SAVANNA), CLASSES)
    found = fit(task, data, tmp_path, epochs=2, accelerator="cpu")
    assert len(task.losses) == 2 and all(math.isfinite(value) for value in [*task.losses, *found["val"].values()])


def test_a_validation_with_nothing_to_score_is_said(tmp_path):
    data = EarthData(Toy(1), Odd(1), batch_size=1)
    with pytest.raises(ValueError, match=r"miou was not a number.*nothing to score"):
        fit(Segmentation(model_for(pl.Deflect(), SAVANNA), CLASSES), data, tmp_path, epochs=1, accelerator="cpu")


def test_training_of_float16_weights_is_refused(tmp_path):
    data = EarthData(Toy(1), Toy(1), batch_size=1)
    with pytest.raises(ValueError, match="AdamW's numbers underflow in float16"):
        fit(Segmentation(model_for(pl.LoRA(), SAVANNA), CLASSES), data, tmp_path, precision="16-true")
