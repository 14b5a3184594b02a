"""Configs of the bridge to HF peft: values that a file can hold, and refusals that say what to do instead."""

import json
import sys

import peft
import pytest
import torch
from helpers import SENTINEL2, adapted, pretrained_tokens, randomise, tiny_vit, tuned

import peftlib as pl
from peftlib.methods import method_from

pytestmark = pytest.mark.filterwarnings("ignore:Unsupported layer type", "ignore:Unexpected keyword")
KINDS = ("LoraConfig", "IA3Config", "FourierFTConfig")
OFFLOAD = peft.LoraRuntimeConfig(ephemeral_gpu_offload=True)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=4, lora_alpha=6),
        peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10),
        peft.FourierFTConfig(n_frequency=20),
        peft.LoraConfig(target_modules=["qkv", "fc1"], rank_pattern={"qkv": 2}, task_type="FEATURE_EXTRACTION"),
        peft.IA3Config(target_modules=["qkv", "fc2"], feedforward_modules=["fc2"]),
        peft.LoraConfig(layers_to_transform=[0, 2], layers_pattern="blocks", target_modules=["qkv"], lora_bias=True),
    ],
    ids=lambda config: type(config).__name__,
)
def test_options_are_json_and_come_back(config, x):
    method = pl.HFPeft(config)
    options = json.loads(json.dumps(method.options()))
    again = method_from("hf_peft", options)
    assert again == method and hash(again) == hash(method) and again.options() == options
    assert tuned(adapted(again)) == tuned(adapted(method))
    assert torch.equal(randomise(adapted(again))(x), randomise(adapted(method))(x))


def test_configs_are_values():
    one, same, other = (pl.HFPeft(peft.LoraConfig(r=r)) for r in (4, 4, 5))
    assert one == same and hash(one) == hash(same) and one != other and len({one, same, other}) == 2
    method = pl.HFPeft(peft.LoraConfig(target_modules=["qkv", "proj", "fc2", "fc1"]))
    assert method.options()["config"]["target_modules"] == ["fc1", "fc2", "proj", "qkv"]  # peft keeps a set
    config = peft.LoraConfig(r=4)
    method = pl.HFPeft(config)
    config.r = 9
    assert method == one and method.config.r == 4


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (None, ("None", *KINDS)),
        ({"r": 8}, ("{'r': 8}", *KINDS)),
        (peft.LoraConfig, ("LoraConfig", *KINDS)),
        (pl.LoRA(), ("LoRA(", *KINDS)),
        (peft.PromptTuningConfig(num_virtual_tokens=3), ("PromptTuningConfig(", *KINDS)),
        (peft.PrefixTuningConfig(num_virtual_tokens=3), ("PrefixTuningConfig(", *KINDS)),
        (peft.LoraConfig(modules_to_save=["head"]), ("modules_to_save=['head']", "task")),
        (peft.LoraConfig(runtime_config=OFFLOAD), ("LoraConfig", "LoraRuntimeConfig", "file")),
    ],
)
def test_what_is_no_config_of_a_tuner_is_named(config, says):
    with pytest.raises(ValueError) as error:
        pl.HFPeft(config)
    assert all(text in str(error.value) for text in says), str(error.value)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (peft.LoraConfig(init_lora_weights="pissa"), ("LoraConfig", "init_lora_weights", "pretrained")),
        (peft.LoraConfig(target_modules=["proj"], exclude_modules=["head"]), ("patch embedding", "pl.Inflated")),
        (peft.LNTuningConfig(target_modules=["norm"]), ("['norm']", "blocks")),
        (peft.LoraConfig(target_modules=["fc3"]), ("fc3", "fc1")),
        (peft.LoraConfig(target_modules=["patch_embed.proj"]), ("patch_embed", "qkv")),
        (peft.VeraConfig(target_modules=["proj"]), ("patch embedding",)),
    ],
)
def test_targets_that_cannot_be_are_named(config, says, vit):
    with pytest.raises(ValueError) as error:
        pl.adapt(vit, pl.HFPeft(config), SENTINEL2)
    assert all(text in str(error.value) for text in says), str(error.value)


def test_a_name_that_the_patch_embedding_shares_means_the_blocks():
    layers = {name.split(".lora_")[0] for name in tuned(adapted(pl.HFPeft(peft.LoraConfig(target_modules=["proj"]))))}
    assert layers == {f"vit.blocks.{i}.attn.proj" for i in range(3)}


def test_a_refused_inplace_adapt_leaves_the_vit_whole(vit, x):
    tokens = pretrained_tokens(vit, x)
    with pytest.raises(ValueError, match="init_lora_weights"):
        pl.adapt(vit, pl.HFPeft(peft.LoraConfig(init_lora_weights="pissa")), SENTINEL2, inplace=True)
    assert torch.equal(pretrained_tokens(vit, x), tokens) and all(p.requires_grad for p in vit.parameters())


@pytest.mark.parametrize("change", [{"config": {"peft_type": "LORA", "novel": 1}}, {"novel": 1}, {"config": None}])
def test_options_of_another_version_are_refused(change):
    options = pl.HFPeft(peft.LoraConfig(r=4)).options() | change
    with pytest.raises(ValueError):
        method_from("hf_peft", {key: value for key, value in options.items() if value is not None})


def test_without_peft_the_message_says_what_to_install(monkeypatch):
    config, options = peft.LoraConfig(), pl.HFPeft(peft.LoraConfig()).options()
    monkeypatch.setitem(sys.modules, "peft", None)
    for call in (lambda: pl.HFPeft(config), lambda: method_from("hf_peft", options)):
        with pytest.raises(ImportError, match=r"pip install 'peftlib\[peft\]'"):
            call()


def test_heads_are_left_alone(vit):
    """bias="all" means a classifier's bias too, which tokens never pass: DDP would refuse it."""
    model = adapted(pl.HFPeft(peft.LoraConfig(bias="all")), vit=tiny_vit(num_classes=4))
    assert "vit.blocks.0.attn.qkv.base_layer.bias" in tuned(model)
    assert not any(".head." in name for name in tuned(model))


@pytest.mark.parametrize("config", [peft.LoraConfig(inference_mode=True), peft.AdaptionPromptConfig()], ids=str)
def test_what_would_train_nothing_is_refused(config):
    with pytest.raises(ValueError, match=r"inference_mode|AdaptionPrompt"):
        pl.HFPeft(config)
