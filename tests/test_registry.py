"""What every input and every method promises, in every combination. The registry alone says what they are: a new one is
tested by being there, and fails until it keeps the promises."""

import copy
import pickle
import re

import pytest
import torch
from helpers import adapted, bands_for, fits, images, pretrained_tokens, randomise, tiny_vit, tuned
from safetensors.torch import load_file
from torch import nn

import peftlib as pl
from peftlib.backbones.loading import BEYOND_TOKENS

PAIRS = {
    f"{input.name}-{method.name}": (input(), method())
    for method in pl.METHODS.values()
    for input in pl.INPUTS.values()
    if fits(method, input)
}
MORE = {  # options that change what is kept, carried or stored
    "emb-deflect carried": (pl.EMB(), pl.Deflect(stream="carried")),
    "emb_series-deflect carried": (pl.INPUTS["emb_series"](), pl.Deflect(stream="carried", layers=(0, -1))),
    "inflated-apla in part": (pl.Inflated(), pl.APLA(share=0.25)),
}
PAIRS |= MORE
EVERY = pytest.mark.parametrize(("input", "method"), PAIRS.values(), ids=PAIRS)
# Each input and each method at least once, for what depends on one or the other and is slow.
INPUTS_OF = {name: [key for key in PAIRS if key.endswith(f"-{name}")] for name in pl.METHODS}
SOME = {keys[i % len(keys)]: PAIRS[keys[i % len(keys)]] for i, keys in enumerate(INPUTS_OF.values())} | MORE
PAIRWISE = pytest.mark.parametrize(("input", "method"), SOME.values(), ids=SOME)


def make(input, method, **options) -> pl.AdaptedViT:
    return adapted(method, bands_for(input), input=input, **options)


def look(model: pl.AdaptedViT, **options) -> torch.Tensor:
    return images(model.bands, size=model.image_size, **options)


def parts_by_pattern(model: pl.AdaptedViT) -> dict[str, set[str]]:
    """What the patterns of input and method say is tuned; what both name is the input's."""
    names = [n for n, _ in model.named_parameters() if not n.removeprefix("vit.").startswith(BEYOND_TOKENS)]
    of_input = {name for name in names if re.fullmatch(model.input.tunes, name)}
    return {"input": of_input, "method": {n for n in names if re.fullmatch(model.method.tunes, n)} - of_input}


def train(model: pl.AdaptedViT, steps: int) -> set[str]:
    """Steps on a loss that leaves no tuned parameter alone -> those that had a gradient in the last one."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(parameters.values(), lr=1e-2, weight_decay=0.1) if parameters else None
    for step in range(steps):
        tokens = model.train()(look(model, seed=step))
        goal = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0))
        if optimiser:
            optimiser.zero_grad()
            (tokens - goal).square().mean().backward()
            optimiser.step()
    model.eval()
    return {name for name, p in parameters.items() if p.grad is not None and p.grad.any()}


def assert_starts_as_pretrained(model: pl.AdaptedViT, vit, tolerance: float) -> None:
    x = look(model)
    x[:, model.bands.rgb[0], :4, :4] = 0.9  # clipped by the stretch
    expected = pretrained_tokens(vit, x, model.bands.rgb)
    with torch.no_grad():
        error = float((model(x) - expected).abs().max())
    if model.input.starts_as_pretrained and model.method.starts_as_pretrained:
        assert error <= tolerance
    else:
        assert error > 1e-3


def assert_frozen_stay(model: pl.AdaptedViT, steps: int) -> None:
    names = tuned(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert train(model, steps) == names
    after = model.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == names


def assert_file_brings_it_back(model: pl.AdaptedViT, vit, path) -> None:
    x = look(model)
    model.fit_normalization([x])
    pl.save_adapter(model, path)
    extra = {f"vit.{name}" for name in model.method.fixed_state(model.vit)}
    assert load_file(path).keys() == tuned(model) | extra | {"reflectance.mean", "reflectance.std"}
    loaded = pl.load_adapter(vit, path).eval()
    assert (loaded.input, loaded.method, loaded.bands) == (model.input, model.method, model.bands)
    assert loaded.image_size == model.image_size and tuned(loaded) == tuned(model)
    with torch.no_grad():
        assert torch.equal(loaded(x), model.eval()(x))


@EVERY
def test_it_starts_as_the_pretrained_model(input, method, vit):
    assert_starts_as_pretrained(make(input, method, vit=vit), vit, 1e-6)


def test_only_prompts_change_the_start():
    configs = pl.INPUTS | pl.METHODS
    assert [name for name, config in configs.items() if not config.starts_as_pretrained] == ["vpt"]


@EVERY
def test_tuned_are_those_that_the_patterns_name_and_both_parts_are_counted(input, method):
    model = make(input, method)
    expected, parts = parts_by_pattern(model), model.tuned_parts()
    assert {part: set(named) for part, named in parts.items()} == expected
    assert tuned(model) == expected["input"] | expected["method"]
    counts = pl.count_parameters(model)
    for part, named in parts.items():
        assert counts[part] == sum(model.get_parameter(name).numel() for name in named)
    assert counts["tuned"] == counts["input"] + counts["method"]


@EVERY
def test_tuned_tensors_learn_within_two_steps_and_all_others_stay_bit_equal(input, method):
    assert_frozen_stay(make(input, method), steps=3)


@EVERY
def test_files_and_copies_carry_everything_on_images_that_are_not_square(input, method, vit, tmp_path):
    made = dict(vit=vit, image_size=(40, 24))
    model = randomise(make(input, method, **made))
    assert_file_brings_it_back(model, vit, tmp_path / "adapter.safetensors")
    x, fresh = look(model), make(input, method, seed=5, **made)
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        tokens, twin, sent = model(x), copy.deepcopy(model), pickle.loads(pickle.dumps(model))  # as to a spawned worker
        assert tokens.shape == (2, 2 + 15, 32) and model.grid_size == (5, 3)
        assert all(torch.equal(other(x), tokens) for other in (fresh.eval(), twin, sent))
        torch.testing.assert_close(model(x[:1]), tokens[:1], rtol=1e-4, atol=1e-4)  # a batch of one
        randomise(twin, seed=9)
        assert torch.equal(model(x), tokens) and torch.equal(twin(x), tokens) == (not tuned(model))


@PAIRWISE
def test_autocast_trains_with_finite_numbers(input, method):
    model = randomise(make(input, method))
    with torch.autocast("cpu", torch.bfloat16):
        tokens = model(look(model))
    assert torch.isfinite(tokens).all()
    if tuned(model):
        tokens.float().square().mean().backward()
        assert all(torch.isfinite(model.get_parameter(name).grad).all() for name in tuned(model))


@pytest.mark.parametrize("precision", ["float32", "bf16-frozen"])
@PAIRWISE
def test_the_forward_compiles_to_one_graph(input, method, precision):
    if precision == "float32" or method.name != "full":
        model = randomise(make(input, method, nodata="zero", vit=tiny_vit(depth=2), precision=precision))
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(look(model)), model(look(model)), rtol=1e-4, atol=1e-4)


@EVERY
def test_frozen_layers_in_bfloat16(input, method, vit, tmp_path):
    """The same promises; where nothing is frozen, an error. Rounding of 2^-9 a weight moves tokens by about 1%."""
    if method.name == "full":
        with pytest.raises(ValueError, match=r"bf16-frozen.*trains them all"):
            make(input, method, precision="bf16-frozen")
        return
    plain, model = (make(input, method, vit=vit, precision=name) for name in ("float32", "bf16-frozen"))
    stored = {name for name, tensor in model.state_dict().items() if tensor.dtype == torch.bfloat16}
    linears = {f"vit.{name}.weight": m for name, m in vit.named_modules() if isinstance(m, nn.Linear)}
    whole = {n for n in linears if n in tuned(model) and model.get_parameter(n).shape == linears[n].weight.shape}
    assert len(stored) == len(linears) - len(whole) and not stored & tuned(model) and tuned(model) == tuned(plain)
    assert len(linears) == 4 * len(vit.blocks) and len(whole) == len(vit.blocks) * (method == pl.APLA())
    with torch.no_grad():
        tokens, rounded = (randomise(one, 0.05).eval()(look(one)) for one in (plain, model))
    assert 0 < (rounded - tokens).norm() < 0.02 * tokens.norm()
    assert rounded.dtype == torch.float32
    assert_frozen_stay(model, steps=3)
    assert_file_brings_it_back(model, vit, tmp_path / "adapter.safetensors")
    assert pl.load_adapter(vit, tmp_path / "adapter.safetensors").precision == "bf16-frozen"
    assert pl.load_adapter(vit, tmp_path / "adapter.safetensors", precision="float32").precision == "float32"


@pytest.mark.weights
@pytest.mark.parametrize("method", [pl.Deflect(), pl.LoRA()], ids=str)
def test_on_dinov2_too(method, small_dinov2, tmp_path):
    model = adapted(method, vit=small_dinov2)
    assert_starts_as_pretrained(model, small_dinov2, 2e-4)  # of about 100
    assert_frozen_stay(model, steps=3)
    assert_file_brings_it_back(model, small_dinov2, tmp_path / "adapter.safetensors")
