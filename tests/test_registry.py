"""What every method in the registry promises, on a tiny ViT and on DINOv2: a new method fails here until it does."""

import copy

import pytest
import torch
from helpers import adapted, images, pretrained_tokens, randomise
from safetensors.torch import load_file

import peftlib as pl
from peftlib.methods.base import InputMethod

METHODS = {name: config() for name, config in pl.METHODS.items()}
INFLATED = {
    f"{name}-zero": config(new_bands="zero", train_patch_embed=True)
    for name, config in pl.METHODS.items()
    if issubclass(config, InputMethod)
}
EVERY = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def tuned_names(name: str, vit) -> set[str]:
    """What a method with its default options tunes of a ViT, by name, read off its definition."""
    own = [parameter for parameter, _ in vit.named_parameters()]
    depth = len(vit.blocks)
    blocks = [f"vit.blocks.{i}" for i in range(depth)]
    bottleneck = ("down.weight", "down.bias", "up.weight", "up.bias")
    pixel_set = ("pixel_mlp.0", "pixel_mlp.2", "patch_mlp.0", "patch_mlp.1", "patch_mlp.3")
    pair = ("weight", "bias")
    fourier = range(depth // 2)
    return {
        "frozen": set(),
        "full": {f"vit.{n}" for n in own},
        "patch_embed": {"vit.patch_embed.proj.weight", "vit.patch_embed.proj.bias"},
        "norm_tuning": {f"{b}.norm{k}.{p}" for b in blocks for k in (1, 2) for p in pair}
        | {"vit.norm.weight", "vit.norm.bias"},
        "bitfit": {f"vit.{n}" for n in own if n.endswith(".bias")},
        "lora": {f"{b}.{linear}.{ab}.weight" for b in blocks for linear in LINEARS for ab in "AB"},
        "slr": {f"{b}.{linear}.{p}" for b in blocks for linear in LINEARS for p in ("D.weight", "U.weight")}
        | {f"{b}.{linear}.{p}" for b in blocks for linear in LINEARS for p in ("s_in", "s_out")},
        "houlsby": {f"{b}.ls{k}.1.{p}" for b in blocks for k in (1, 2) for p in bottleneck},
        "vpt": {f"{b}.prompts" for b in blocks},
        "earth_adapter": {f"{b}.scale" for b in blocks}
        | {f"vit.blocks.{i}.router.{p}" for i in fourier for p in pair}
        | {
            f"{b}.experts.{e}.{layer}.{p}"
            for i, b in enumerate(blocks)
            for e in range(3 if i in fourier else 1)
            for layer in (0, 2)
            for p in pair
        },
        "deflect": {f"auxiliary.{layer}.{p}" for layer in pixel_set for p in pair}
        | {f"{b}.auxiliary.{uv}.weight" for b in blocks for uv in "UV"},
    }[name]


def train(model: pl.AdaptedViT, steps: int) -> None:
    """Optimiser steps on a loss that has no reason to leave any tuned parameter alone."""
    tuned = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(tuned, lr=1e-2, weight_decay=0.1) if tuned else None
    goal = None
    for step in range(steps):
        tokens = model(images(model.bands.names, size=model.image_size, seed=step))
        goal = torch.randn_like(tokens) if goal is None else goal
        if optimiser:
            optimiser.zero_grad()
            (tokens - goal).square().mean().backward()
            optimiser.step()


@pytest.fixture
def x(any_vit):
    return images(size=any_vit.patch_embed.img_size)


def scale(vit) -> float:
    """How far to move parameters: noise that a tiny ViT stands would drown a deep one."""
    return 0.2 if len(vit.blocks) == 3 else 0.02


# --- the start ---


def test_only_prompts_change_the_start(any_vit, x):
    assert {name for name, method in METHODS.items() if not method.starts_as_pretrained} == {"vpt"}
    assert (adapted(pl.VPT(), vit=any_vit)(x) - pretrained_tokens(any_vit, x)).abs().max() > 1e-3


STARTS = {name: method for name, method in (METHODS | INFLATED).items() if method.starts_as_pretrained}


@pytest.mark.parametrize("method", STARTS.values(), ids=STARTS)
def test_the_adapted_model_starts_as_the_pretrained_one(method, any_vit, x):
    x[:, 3, :4, :4] = 0.9  # clipped by the stretch
    expected = pretrained_tokens(any_vit, x)
    with torch.no_grad():
        error = (adapted(method, vit=any_vit)(x) - expected).abs().max()
    # An inflated convolution sums in another order. DINOv2's tokens have entries of about 100.
    assert error <= (1e-6 if len(any_vit.blocks) == 3 else 2e-6 * float(expected.abs().max()))


@EVERY
def test_images_that_are_not_square_and_batches_of_one(method, any_vit):
    patch = any_vit.patch_embed.patch_size[0]
    x = images(batch=1, size=(3 * patch, 2 * patch))
    model = adapted(method, vit=any_vit, image_size=(3 * patch, 2 * patch))
    assert model.grid_size == (3, 2)
    assert model(x).shape == (1, any_vit.num_prefix_tokens + 6, any_vit.embed_dim)
    pair = model(torch.cat([x, x.flip(-1)]))
    torch.testing.assert_close(model.eval()(x), pair[:1], rtol=1e-4, atol=1e-4)


# --- training ---


@EVERY
def test_exactly_the_named_parameters_are_tuned(method, any_vit):
    model = adapted(method, vit=any_vit)
    expected = tuned_names(method.name, any_vit)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == expected
    count = sum(p.numel() for name, p in model.named_parameters() if name in expected)
    assert pl.count_parameters(model)["tuned"] == count


@EVERY
def test_frozen_tensors_are_bit_equal_after_training(method, any_vit):
    model = adapted(method, vit=any_vit)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, 10 if len(any_vit.blocks) == 3 else 3)
    after = model.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == tuned_names(method.name, any_vit)


@pytest.mark.parametrize("method", (METHODS | INFLATED).values(), ids=METHODS | INFLATED)
def test_every_tuned_tensor_gets_a_gradient_within_two_steps(method, any_vit, x):
    model = adapted(method, vit=any_vit)
    train(model, 2)
    model.zero_grad()
    tuned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if tuned:
        model(x).square().mean().backward()
    assert not [name for name, p in tuned.items() if p.grad is None or not p.grad.any()]


@EVERY
def test_autocast_trains_with_finite_numbers(method, any_vit, x):
    model = randomise(adapted(method, vit=any_vit), scale(any_vit))
    with torch.autocast("cpu", torch.bfloat16):
        tokens = model(x)
        loss = tokens.float().square().mean()
    assert torch.isfinite(tokens).all()
    tuned = [p for p in model.parameters() if p.requires_grad]
    if tuned:
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in tuned)


# --- as a module ---


@EVERY
def test_state_dict_and_deepcopy_carry_everything(method, any_vit, x):
    model = randomise(adapted(method, vit=any_vit), scale(any_vit)).fit_normalization([x])
    fresh = adapted(method, vit=any_vit, seed=5)
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        tokens = model(x)
        assert torch.equal(fresh(x), tokens)
        twin = copy.deepcopy(model)
        assert torch.equal(twin(x), tokens)
        randomise(twin, scale(any_vit), seed=9)
        assert torch.equal(model(x), tokens)
        assert not pl.count_parameters(model)["tuned"] or not torch.equal(twin(x), tokens)


@EVERY
def test_an_adapter_file_holds_tensors_alone_and_brings_the_model_back(method, any_vit, x, tmp_path):
    model = randomise(adapted(method, vit=any_vit), scale(any_vit)).fit_normalization([x])
    path = pl.save_adapter(model, tmp_path / "adapter.safetensors")
    normalisation = {"reflectance.mean", "reflectance.std"}
    assert load_file(path).keys() == tuned_names(method.name, any_vit) | normalisation  # no pickle in it
    with torch.no_grad():
        assert torch.equal(pl.load_adapter(any_vit, path)(x), model(x))


@EVERY
def test_the_forward_compiles_to_one_graph(method, any_vit, x):
    model = randomise(adapted(method, vit=any_vit, nodata="zero"), scale(any_vit))
    backend = "aot_eager" if len(any_vit.blocks) == 3 else "eager"  # what may break the graph is the same
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
