"""peftlib's backbones in the real TerraTorch: every name builds, trains, and leaves the pretrained weights alone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import assert_only_tuned_moved, images, snapshot
from safetensors.torch import save_file

pytest.importorskip("terratorch.registry", reason="TerraTorch has an environment of its own: make test-terratorch")

import comparison
from scenes import BANDS, SIZE, Scenes, write_tiffs
from terratorch.registry import BACKBONE_REGISTRY, TERRATORCH_BACKBONE_REGISTRY

import peftlib as pl
import peftlib.integrations.terratorch
from peftlib.training.fit import quiet_trainer

PAGE = (Path(__file__).parents[2] / "docs" / "terratorch.md").read_text()
RANDOM = {"pretrained": False, "image_size": SIZE}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A file of weights in the place of the pretrained ones, which a network would bring."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "dinov2_small.safetensors"
    save_file(pl.load_backbone("dinov2_small", weights="random").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def data() -> Scenes:
    return Scenes({"train": 16, "val": 8, "test": 8})


@pytest.mark.parametrize("method", pl.METHODS)
def test_every_method_builds_by_name(method):
    assert {f"peftlib_{method}_{backbone}" for backbone in pl.BACKBONES} <= set(TERRATORCH_BACKBONE_REGISTRY)
    backbone = BACKBONE_REGISTRY.build(f"peftlib_{method}_dinov2_small", bands=BANDS, out_indices=[2, 11], **RANDOM)
    assert backbone.model.bands.names == BANDS and backbone.model.method == pl.METHODS[method]()
    assert backbone.training and backbone.out_channels == [384, 384]
    assert [z.shape for z in backbone(images(BANDS, size=(SIZE, SIZE)))] == [(2, 17, 384)] * 2


def test_options_reach_the_method_and_wrong_ones_are_named():
    name = "peftlib_lora_dinov2_small"
    backbone = BACKBONE_REGISTRY.build(name, bands=BANDS, rank=4, targets=["q", "v"], **RANDOM)
    assert backbone.model.method == pl.LoRA(rank=4, targets=("q", "v"))
    options = {"input": "emb", "input_options": {"width": 8}}
    assert BACKBONE_REGISTRY.build(name, bands=BANDS, **options, **RANDOM).model.input == pl.EMB(width=8)
    with pytest.raises(ValueError, match=r"unknown input 'raw'"):
        BACKBONE_REGISTRY.build(name, bands=BANDS, input="raw", **RANDOM)
    with pytest.raises(ValueError, match=r"lora does not know options .*num_frames"):
        BACKBONE_REGISTRY.build(name, bands=BANDS, num_frames=1, **RANDOM)


@pytest.mark.parametrize("kind", comparison.KINDS)
def test_a_task_trains_the_tuned_weights_alone(kind, data):
    task = comparison.build(kind, lr=1e-2, seed=0, backbone_pretrained=False)
    before = snapshot(task)
    row = comparison.run(task, data, epochs=2)
    assert_only_tuned_moved(task, before)
    assert sum(not tuned for tuned, _ in before.values()) > 150
    assert row["tuned"] > 0 and row["file_mb"] > 4 * row["tuned"] / 1e6 and 0 <= row["miou"] <= 100


def test_freeze_backbone_is_refused_where_it_would_freeze_the_adapter(data):
    task = comparison.build("DEFLECT", lr=1e-2, seed=0, backbone_pretrained=False)
    task.model.freeze_encoder()
    with pytest.raises(ValueError, match="freeze_backbone"):
        quiet_trainer(max_epochs=1, accelerator="cpu", limit_val_batches=0).fit(task, data)


def test_both_loras_tune_as_much_from_the_same_start(data):
    tasks = [
        comparison.build(kind, lr=1e-3, seed=0, backbone_pretrained=False).eval() for kind in list(comparison.KINDS)[:2]
    ]
    ours, theirs = (sum(p.numel() for p in t.model.encoder.parameters() if p.requires_grad) for t in tasks)
    assert ours == theirs
    x = data.parts["test"][0]["image"][None]
    with torch.no_grad():
        ours, theirs = (t.model.encoder(x)[-1] for t in tasks)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_yaml_of_the_page_trains_by_the_command_line(tmp_path, weights):
    """A process of its own: nothing but ``custom_modules_path`` may bring peftlib in."""
    config = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    write_tiffs(tmp_path / "chips", length=4)
    (tmp_path / "custom_modules").mkdir()
    (tmp_path / "custom_modules" / "__init__.py").write_text("import peftlib.integrations.terratorch\n")
    config["trainer"] |= {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": True}
    config["data"]["init_args"] |= {"batch_size": 2, "num_workers": 0}
    model = config["model"]["init_args"]["model_args"]
    model |= {"backbone_weights": str(weights), "backbone_image_size": SIZE}
    (tmp_path / "deflect.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "terratorch", "fit", "-c", "deflect.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]

    (checkpoint,) = tmp_path.rglob("*_state_dict.ckpt")
    prefix, state = "model.encoder.model.vit.", torch.load(checkpoint, weights_only=True)["state_dict"]
    found = {n.removeprefix(prefix).replace(".block.", "."): t for n, t in state.items() if n.startswith(prefix)}
    frozen = pl.load_backbone("dinov2_small", weights=weights, image_size=SIZE).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in frozen.items())
    tuned = [t for name, t in found.items() if name.endswith("auxiliary.U.weight")]  # zero at the start
    assert len(tuned) == 12 and all(t.abs().sum() > 0 for t in tuned)
