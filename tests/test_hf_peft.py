"""The bridge to HF peft: its tuners keep what adapt promises of every method. That what we have too equals theirs is in
test_hf_equivalence."""

import copy
import json
import pickle
import sys

import peft
import pytest
import torch
from helpers import SENTINEL2, adapted, images, pretrained_tokens, randomise, tiny_vit, tuned
from test_merge import assert_merges
from test_registry import assert_frozen_stay, assert_starts_as_pretrained
from torch import nn

import peftlib as pl
from peftlib.methods import method_from

# peft says so of every LayerNorm, and of options of other versions
pytestmark = pytest.mark.filterwarnings("ignore:Unsupported layer type", "ignore:Unexpected keyword")

LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
AB = ("lora_A.default.weight", "lora_B.default.weight")
LN = ("ln_tuning_layers.default.weight", "ln_tuning_layers.default.bias")
ADALORA = peft.AdaLoraConfig(init_r=4, target_r=1, tinit=1, tfinal=3, deltaT=1, total_step=10)
# name -> config, the layers of a block that it adapts, what it trains in each of them
CASES = {
    "lora": (peft.LoraConfig(r=4, lora_alpha=6), LINEARS, AB),
    "dora": (peft.LoraConfig(r=4, use_dora=True), LINEARS, (*AB, "lora_magnitude_vector.default.weight")),
    "adalora": (ADALORA, LINEARS, tuple(f"lora_{part}.default" for part in "ABE")),
    "ia3": (peft.IA3Config(), ("attn.qkv", "mlp.fc2"), ("ia3_l.default",)),
    "ln_tuning": (peft.LNTuningConfig(), ("norm1", "norm2"), LN),
    "oft": (peft.OFTConfig(oft_block_size=8), LINEARS, ("oft_R.default.weight",)),
    "vera": (peft.VeraConfig(r=4), LINEARS, ("vera_lambda_b.default", "vera_lambda_d.default")),
    "fourierft": (peft.FourierFTConfig(n_frequency=20, init_weights=True), LINEARS, ("fourierft_spectrum.default",)),
}
EVERY = pytest.mark.parametrize("name", CASES)


def bridge(name: str, **options) -> pl.AdaptedViT:
    return adapted(pl.HFPeft(CASES[name][0]), **options)


def by_rule(name: str) -> set[str]:
    """Parameters that a case trains on the tiny ViT."""
    _, layers, parts = CASES[name]
    where = [f"vit.blocks.{i}.{layer}" for i in range(3) for layer in layers]
    return {f"{path}.{part}" for path in where + ["vit.norm"] * (name == "ln_tuning") for part in parts}


def train(model: pl.AdaptedViT, steps: int, after=lambda step: None) -> pl.AdaptedViT:
    """AdamW steps in training mode; ``after`` sees the gradients of each."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    goal = torch.randn(2, 18, 32, generator=torch.Generator().manual_seed(3))
    for step in range(steps):
        optimiser.zero_grad()
        (model.train()(images(seed=step)) - goal).square().mean().backward()
        optimiser.step()
        after(step)
    return model.eval()


def ranks(model: nn.Module) -> dict[str, int]:
    return {name: int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name}


# --- what adapt promises of every method ---


@EVERY
def test_it_starts_as_the_pretrained_model_and_tunes_its_own_parameters_on_any_input(name, vit):
    for input in (pl.RGB(), pl.EMB(), pl.Inflated()):
        model = bridge(name, input=input, vit=vit)
        assert_starts_as_pretrained(model, vit, 1e-6)
        assert set(model.tuned_parts()["method"]) == by_rule(name)
        assert set(model.tuned_parts()["input"]) == set(adapted(pl.Frozen(), input=input).tuned_parts()["input"])


@EVERY
def test_tuned_tensors_learn_and_frozen_ones_model_and_config_stay(name, vit):
    config, before = copy.deepcopy(CASES[name][0]), {key: tensor.clone() for key, tensor in vit.state_dict().items()}
    method = pl.HFPeft(config)
    model = pl.adapt(vit, method, SENTINEL2)
    assert_frozen_stay(model, 3)
    if name == "adalora":
        train(model, 5, model.vit.hf_tuner.update_and_allocate)
    assert config == CASES[name][0] and config is not method.config and method == pl.HFPeft(config) == model.method
    assert list(vit.state_dict()) == list(before) and not hasattr(vit, "peft_config")
    assert all(torch.equal(vit.state_dict()[key], tensor) for key, tensor in before.items())


@EVERY
def test_copies_and_files_carry_everything(name, x, tmp_path):
    model = randomise(bridge(name)).fit_normalization([x])
    fresh = bridge(name, seed=5)
    fresh.load_state_dict(model.state_dict())
    expected = model(x)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    assert all(torch.equal(other(x), expected) for other in (fresh, *twins))
    for twin in twins:
        assert twin.vit.hf_tuner.model is twin.vit
        assert not torch.equal(randomise(twin, seed=9)(x), expected)
    torch.manual_seed(7)  # what a fresh tuner draws is another
    loaded = pl.load_adapter(tiny_vit(), pl.save_adapter(model, tmp_path / "a.safetensors"))
    assert torch.equal(loaded(x), expected) and loaded.method == model.method and tuned(loaded) == by_rule(name)


@EVERY
def test_merge_gives_the_plain_vit(name, x):
    model = randomise(bridge(name))
    expected, merged = model(x), assert_merges(model, x)
    assert list(merged.state_dict()) == list(tiny_vit().state_dict())
    assert not hasattr(merged, "hf_tuner") and not hasattr(merged, "peft_config")
    assert torch.equal(model(x), expected) and tuned(model) == by_rule(name)


# --- what only some have ---


def test_the_ranks_that_adalora_gave_survive_the_file_and_belong_to_one_copy(x, tmp_path):
    model = bridge("adalora")
    twin = copy.deepcopy(model)
    train(twin, 8, twin.vit.hf_tuner.update_and_allocate)
    assert sum(ranks(twin).values()) == 12 and set(ranks(model).values()) == {0}
    assert model.vit.hf_tuner.peft_config["default"].rank_pattern is None
    loaded = pl.load_adapter(tiny_vit(), pl.save_adapter(twin, tmp_path / "a.safetensors"))
    assert torch.equal(loaded(x), twin(x)) and ranks(loaded) == ranks(twin)


# --- configs: values that a file can hold, and refusals that say what to do instead ---


def test_without_peft_the_message_says_what_to_install(monkeypatch):
    config, options = peft.LoraConfig(), pl.HFPeft(peft.LoraConfig()).options()
    monkeypatch.setitem(sys.modules, "peft", None)
    for call in (lambda: pl.HFPeft(config), lambda: method_from("hf_peft", options)):
        with pytest.raises(ImportError, match=r"pip install 'peftlib\[peft\]'"):
            call()


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(target_modules=["qkv", "fc1"], rank_pattern={"qkv": 2}, task_type="FEATURE_EXTRACTION"),
        peft.IA3Config(target_modules=["qkv", "fc2"], feedforward_modules=["fc2"]),
    ],
    ids=lambda config: type(config).__name__,
)
def test_options_are_json_and_come_back(config, x):
    method = pl.HFPeft(config)
    again = method_from("hf_peft", json.loads(json.dumps(method.options())))
    assert again == method and hash(again) == hash(method) and again != pl.HFPeft(peft.LoraConfig(r=5))
    assert tuned(adapted(again)) == tuned(adapted(method))
    assert torch.equal(randomise(adapted(again))(x), randomise(adapted(method))(x))
    for change in ({"config": {"peft_type": "LORA", "novel": 1}}, {"novel": 1}, {"config": {"peft_type": "NONE"}}):
        with pytest.raises(ValueError, match=r"novel|NONE"):
            method_from("hf_peft", method.options() | change)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"r": 8}, ("{'r': 8}", "LoraConfig", "IA3Config", "FourierFTConfig")),
        (peft.PrefixTuningConfig(num_virtual_tokens=3), ("PrefixTuningConfig(", "LoraConfig")),
        (peft.LoraConfig(modules_to_save=["head"]), ("modules_to_save", "task")),
        (peft.LoraConfig(inference_mode=True), ("inference_mode", "pl.Frozen()")),
        (
            peft.LoraConfig(runtime_config=peft.LoraRuntimeConfig(ephemeral_gpu_offload=True)),
            ("LoraRuntimeConfig", "file"),
        ),
        (peft.LoraConfig(init_lora_weights="pissa"), ("LoraConfig", "init_lora_weights", "pretrained")),
        (peft.LNTuningConfig(target_modules=["norm"]), ("['norm']", "blocks")),
        (peft.LoraConfig(target_modules=["fc3"]), ("fc3", "fc1")),
        (peft.TrainableTokensConfig(), ("TrainableTokensConfig(", "LoraConfig")),  # of a language model
        (peft.LoraConfig(target_modules=["proj"], exclude_modules=["head"]), ("patch embedding", "input")),
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_cannot_be_is_named_and_leaves_the_vit_whole(config, says, vit, x):
    tokens = pretrained_tokens(vit, x)
    with pytest.raises(ValueError) as error:
        pl.adapt(vit, pl.HFPeft(config), SENTINEL2)
    assert all(text in str(error.value) for text in says), str(error.value)
    assert torch.equal(pretrained_tokens(vit, x), tokens) and all(p.requires_grad for p in vit.parameters())


def test_targets_are_in_the_blocks_alone(x):
    """Neither the patch embedding, whose layer is a "proj" too, nor a head, which tokens never pass (bias="all")."""
    proj = tuned(adapted(pl.HFPeft(peft.LoraConfig(target_modules=["proj"]))))
    assert {name.split(".lora_")[0] for name in proj} == {f"vit.blocks.{i}.attn.proj" for i in range(3)}
    bias = tuned(adapted(pl.HFPeft(peft.LoraConfig(bias="all")), vit=tiny_vit(num_classes=4)))
    assert "vit.blocks.0.attn.qkv.base_layer.bias" in bias and not any(".head." in name for name in bias)
    elsewhere = adapted(pl.HFPeft(peft.FourierFTConfig(n_frequency=20)))
    assert (elsewhere(x) - pretrained_tokens(tiny_vit(), x)).abs().max() > 1e-3  # its default start is another
