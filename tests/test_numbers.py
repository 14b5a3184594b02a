"""Odd numbers: pixels without data, constant bands, nothing to learn from, 16 bits, tokens that do not move. One
combination of each mechanism stands for all."""

import math

import pytest
import torch
from helpers import SAVANNA, SENTINEL2, adapted, images, randomise
from toy_data import Toy

import peftlib as pl
from peftlib.data.datamodule import EarthData
from peftlib.deflect.attention import inverse_deviation
from peftlib.deflect.norm_constraint import constrain_norm
from peftlib.sensors.reflectance import POSSIBLE
from peftlib.training.fit import fit
from peftlib.training.tasks import Segmentation

NAN, INF = math.nan, math.inf
CLASSES = ("a", "b", "c")
MECHANISMS = {
    "full": (pl.Full(), pl.Inflated()),
    "lora": (pl.LoRA(), pl.Inflated("mean")),
    "vpt": (pl.VPT(), pl.RGB()),
    "earth_adapter": (pl.EarthAdapter(), pl.EMB()),
    "deflect": (pl.Deflect(), pl.EMB()),
    "wavelengths": (pl.Deflect(low_rank_principal=2), pl.EMB(spectral="wavelengths", cells=2)),
}
EVERY = pytest.mark.parametrize("kind", MECHANISMS)


def model_for(kind: str, bands=SENTINEL2, nodata: str = "zero") -> pl.AdaptedViT:
    method, input = MECHANISMS[kind]
    return randomise(adapted(method, bands, input=input, nodata=nodata))


def assert_trains(model: pl.AdaptedViT, x, autocast: torch.dtype | None = None) -> None:
    """Tokens, loss and gradients are finite, and so are all parameters after a step."""
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        tokens = model.train()(x)
    loss = tokens.float().square().mean()
    assert tokens.isfinite().all() and loss.isfinite()
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in parameters)
    torch.optim.SGD(parameters, lr=1e-3).step()
    assert all(p.isfinite().all() for p in parameters)


# --- pixels without data ---


@EVERY
def test_what_lies_under_a_pixel_without_data_never_matters(kind):
    """Whether all bands of a pixel lack data or one: NaN, infinity and minus infinity are the same."""
    model, x, draw = model_for(kind).eval(), images(), torch.Generator().manual_seed(0)
    for share, bands in ((0.001, 13), (0.1, 1), (0.9, 13), (1.0, 1)):
        gone = torch.rand(2, bands, 32, 32, generator=draw) <= share
        with torch.no_grad():
            tokens = [model(torch.where(gone, value, x)) for value in (NAN, INF, -INF)]
            assert tokens[0].isfinite().all()
            assert torch.equal(tokens[1], tokens[0]) and torch.equal(tokens[2], tokens[0])
            assert share < 0.1 or not torch.equal(model(x), tokens[0])


@EVERY
def test_images_without_data_and_constant_ones_train_with_finite_numbers(kind):
    odd = [images() for _ in range(6)]
    odd[0][:], odd[1][0], odd[2][:, 7], odd[3][..., :8, :8] = NAN, NAN, NAN, NAN
    odd[4][:], odd[5][:, 7] = 0.0, 0.1
    for x in odd:
        assert_trains(model_for(kind), x)
    flat = model_for(kind).fit_normalization([odd[4] + 1])
    assert_trains(flat, odd[4] + 1)
    assert not flat.reflectance.beyond(odd[4] + 1).any()


# --- extreme values, 16 and 64 bits ---


def extreme_images() -> torch.Tensor:
    """As many values at both ends of what may be reflectance as the check lets pass, in every band."""
    x, draw = images(), torch.rand(2, 13, 32, 32, generator=torch.Generator().manual_seed(1))
    low, high = POSSIBLE
    return torch.where(draw < 0.02, low, torch.where(draw < 0.04, high, x))


@EVERY
def test_models_of_every_precision_train_on_extreme_values(kind):
    """Also with a band that was nearly constant where it was fitted: a million deviations off, but for the limit."""
    x, seen = extreme_images(), images()
    seen[:, 7] = 0.1
    seen[0, 7, 0, 0] = 0.1001
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert_trains(model_for(kind).to(dtype), x.to(dtype))
        with torch.no_grad():
            assert model_for(kind).fit_normalization([seen]).to(dtype)(x.to(dtype)).isfinite().all()
    for autocast in (torch.float16, torch.bfloat16):
        assert_trains(model_for(kind), x, autocast=autocast)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_scale_of_a_token_has_the_gradient_of_the_formula_in_every_precision(dtype):
    """Of a constant token it is 0; of a token of small deviation the cube in it passes what float16 holds."""
    z = 0.01 * torch.randn(1, 4, 32)
    z[0, 0] = 0.5
    z = z.to(dtype).requires_grad_()
    wide = z.detach().double().requires_grad_()
    inverse_deviation(z, 1e-6).sum().backward()
    (wide.var(-1, keepdim=True, unbiased=False) + 1e-6).rsqrt().sum().backward()
    assert z.grad.isfinite().all() and not z.grad[0, 0].any()
    rtol = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
    torch.testing.assert_close(z.grad.double(), wide.grad, rtol=rtol, atol=rtol * float(wide.grad.abs().max()))


# --- tokens that do not move ---


@pytest.mark.parametrize("reference_grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tokens_that_do_not_move_have_finite_gradients(dtype, reference_grad):
    D, D_ref = (torch.randn(2, 4, 8, dtype=torch.float64).to(dtype) for _ in range(2))
    D[0, 0] = D[0, 2] = 0
    D_ref[0, 1] = D_ref[0, 2] = 0
    D.requires_grad_(), D_ref.requires_grad_()
    out, _ = constrain_norm(D, D_ref, reference_grad)
    assert not out[0, :3].any() and out[0, 3].any()
    (out * torch.randn(2, 4, 8).to(dtype)).sum().backward()
    assert D.grad.isfinite().all() and D.grad[0, 0].any() and not D.grad[0, 1].any()
    assert D_ref.grad is None if not reference_grad else D_ref.grad.isfinite().all() and D_ref.grad[0, 3].any()


@pytest.mark.parametrize("constrain", [True, False])
def test_deflect_keeps_still_tokens_still(constrain):
    """With values of 0 the pretrained block moves nothing, and so must not the constrained one."""
    model, x = randomise(adapted(pl.Deflect(constrain=constrain))), images(batch=1)
    z, z_A = (part.detach() for part in model.embed(x))
    for block in model.vit.blocks:
        attn = block.block.attn
        with torch.no_grad():
            for values in (attn.proj.bias, attn.qkv.weight[64:], attn.qkv.bias[64:]):
                values.zero_()
        assert block.displacement(z, z_A)[0].any() != constrain
    assert_trains(model, x)


# --- batches that teach little, and whole trainings ---


class Odd(Toy):
    """Of three images one without any data or label, one that is zero throughout, and one as it should be."""

    def __getitem__(self, i: int) -> dict:
        sample = super().__getitem__(i)
        if i < 2:
            sample["image"][:] = NAN if i == 0 else 0.0
            sample["mask"][:] = -1 if i == 0 else 0
        return sample


@pytest.mark.parametrize(("kind", "precision"), [("lora", "32-true"), ("deflect", "bf16-mixed")])
def test_three_steps_of_fit_on_odd_images_leave_finite_numbers(kind, precision, tmp_path):
    data = EarthData(Odd(3), Toy(1, seed=1), Odd(3, seed=2), batch_size=1)
    model = model_for(kind, SAVANNA).fit_normalization(data.train_dataloader())
    task = Segmentation(model, CLASSES, lr=1e-2)
    found = fit(task, data, tmp_path, steps=3, precision=precision, accelerator="cpu")
    assert all(p.isfinite().all() for p in task.parameters())
    nan = {name for part in found.values() for name, value in part.items() if math.isnan(value)}
    assert nan <= {"iou_c"}  # a class that neither occurs nor is predicted
