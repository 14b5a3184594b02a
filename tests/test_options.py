"""Every option of every method and input does something, and refuses what makes no sense. The fields' own metadata say
what they may hold, so that a new option is tested by being there."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import SAVANNA, adapted, bands_for, images, randomise

import peftlib as pl
from peftlib.deflect.time_series import SeriesEMB
from peftlib.methods import Input, input_from, method_from
from peftlib.methods.base import INF
from peftlib.studies import tables

CONFIGS = pl.METHODS | pl.INPUTS
FIELDS = {f"{name}-{f.name}": (config, f) for name, config in CONFIGS.items() for f in fields(config)}


def pair(config, f):
    """Two configs that differ in one field alone; its default may need another field to be changed first."""
    for first in ({}, *({o.name: o.metadata["other"]} for o in fields(config) if o != f)):
        try:
            return config(**first), replace(config(**first), **{f.name: f.metadata["other"]})
        except ValueError:
            continue
    raise AssertionError(f"{config.__name__}({f.name}={f.metadata['other']!r}) is refused")


def made(config) -> pl.AdaptedViT:
    """An input is seen through a frozen ViT, a method on its own input."""
    input, method = (config, pl.Frozen()) if isinstance(config, Input) else (config.default_input(), config)
    return randomise(adapted(method, bands_for(input), input=input))


def trained_tokens(config) -> torch.Tensor:
    """Tokens after one gradient step from a randomised start: shows what changes the forward or the gradient."""
    model = made(config).train()  # dropout and draws of pixels show in training only
    x = images(model.bands)
    torch.manual_seed(0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if parameters:
        gradients = torch.autograd.grad((model(x) - torch.arange(32) / 16).square().mean(), parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p.sub_(0.05 * g)
    with torch.no_grad():
        return model.eval()(x)


@pytest.mark.parametrize(("config", "f"), FIELDS.values(), ids=FIELDS)
def test_every_option_changes_the_model(config, f):
    assert f.metadata, f"{config.__name__}.{f.name} is not made by option()"
    if f.metadata["choices"] == (f.default,):  # nothing to choose
        return
    one, other = pair(config, f)
    assert one != other
    shapes = [{n: p.shape for n, p in made(c).named_parameters() if p.requires_grad} for c in (one, other)]
    if shapes[0] == shapes[1]:
        assert not torch.allclose(trained_tokens(one), trained_tokens(other), atol=1e-4)


def test_the_comparison_can_tell_equal_models():
    assert torch.equal(*(trained_tokens(pl.Deflect()) for _ in range(2)))


@pytest.mark.parametrize(("config", "f"), FIELDS.values(), ids=FIELDS)
def test_impossible_values_are_refused_with_field_and_value(config, f):
    told, bad = f.metadata, [None, "nonsense"]
    if told["some"]:
        first = told["some"][0]
        bad += [(), first, (first, "nonsense"), (first, first)]
    elif told["least"] > -INF:
        bad += [told["least"] - 1, float("nan"), INF, "8", True] + ([told["below"]] if told["below"] < INF else [])
        bad += [told["least"] + 0.5] if isinstance(f.default, int) else []
    elif not told["choices"]:  # names of blocks or indices: only the model knows which there are
        bad = []
    for value in bad:
        with pytest.raises(ValueError) as error:
            config(**{f.name: value})
        assert f.name in str(error.value) and repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: adapted(pl.LoRA(targets=("qkv", "v"))), ["no linear layer 'qkv'"]),  # another LoRA has it already
        (lambda: pl.Inflated(train=False), ["Inflated(train=False)", "repeat", "nearest"]),
        (lambda: pl.Inflated("random", train=False), ["Inflated(start='random', train=False)", "noise", "mean"]),
        (lambda: pl.APLA(share=0), ["share=0", "above 0"]),
        (lambda: pl.APLA(share=1.5), ["share=1.5", "at most 1"]),
        (lambda: pl.EMB(indices="NDVI"), ["indices='NDVI'", "'auto'"]),
        (lambda: SeriesEMB(spectral="wavelengths"), ["spectral='wavelengths'"]),
        (lambda: method_from("lora", {"rank": 2, "novel": 1}), ["lora", "novel", "rank"]),
        (lambda: method_from("emb", {}), ["unknown method 'emb'", "lora", "deflect"]),
        (lambda: input_from("lora", {}), ["unknown input 'lora'", "rgb", "inflated", "emb"]),
    ],
)
def test_what_metadata_cannot_say_is_refused_too(make, says):
    with pytest.raises(ValueError) as error:
        make()
    assert all(text in str(error.value) for text in says), str(error.value)


@pytest.mark.parametrize("layers", [(), (3,), (-4,), (0, -3), ("0",), "last", 2, None, (1.0,)])
def test_layers_that_do_not_exist_are_named(layers, vit):
    for config in (pl.Deflect, pl.LoRA):
        with pytest.raises(ValueError, match="layers"):
            pl.adapt(vit, config(layers=layers), SAVANNA)


def test_a_later_option_leaves_the_keys_of_earlier_results():
    rows = pd.read_csv(Path(__file__).parents[1] / "data" / "results" / "preliminary" / "runs.csv")
    assert set(rows.loc[rows["method"] == "deflect", "options"]) == {json.dumps(pl.Deflect().options(), sort_keys=True)}
    assert pl.Deflect(stream="carried").options() == pl.Deflect().options() | {"stream": "carried"}
    emb, carried = (json.dumps(config.options()) for config in (pl.EMB(), pl.Deflect(stream="carried")))
    assert tables._cell("emb", emb, "deflect", carried) == "DEFLECT (stream='carried')"


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_configs_are_values(config):
    assert config() == config() and hash(config()) == hash(config()) and str(config()) == f"{config.__name__}()"
    for one in (config(), *(pair(config, f)[1] for f in fields(config))):
        plain = {key: list(v) if isinstance(v, tuple) else v for key, v in one.options().items()}  # as JSON has them
        assert (input_from if isinstance(one, Input) else method_from)(one.name, plain) == one
        assert eval(str(one), {c.__name__: c for c in CONFIGS.values()}) == one
    assert config.label and (one.learning_rates == () or len(one.learning_rates) >= 3)
