"""Checkpoints in the layouts of their authors: made here, loaded strictly, no stray key swallowed."""

import argparse
from pathlib import Path

import pytest
import torch
from helpers import tiny_vit

import peftlib as pl
from peftlib.backbones.author_checkpoints import cross_scale_mae_state, fuse_qkv


@pytest.fixture(scope="module")
def small():
    """A DINO-MC-like ViT, and its weights in timm's names."""
    return pl.load_backbone("dino_mc_small", weights="random")


def same(vit, state) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in vit.state_dict().items())


def dino_checkpoint(state, prefix="module.backbone.") -> dict:
    """What a DINO training writes: teacher and student with their heads, and the run's arguments."""
    head = {f"{prefix.split('backbone')[0]}head.{n}": torch.randn(3) for n in ("mlp.0.weight", "last_layer.weight_g")}
    teacher = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    return dict(
        student={"module.backbone.cls_token": torch.zeros(1)},
        teacher=teacher | head,
        epoch=300,
        args=argparse.Namespace(patch_size=8, output_dir=Path("/out")),
        optimizer={"state": {}, "param_groups": [{"lr": 1e-4}]},
    )


def authors_names(state, split: bool, prefix: str = "encoder.", names=("q", "k", "v")) -> dict:
    """Cross-Scale MAE's names for an encoder, with a decoder beside it."""
    beside = ("decoder.0.norm1.weight", "decoder_embed.bias", "mask_token", "decoder_pos_embed", "predictor.0.bias")
    made = dict.fromkeys(beside, torch.ones(4))
    for name, tensor in state.items():
        if split and ".attn.qkv." in name:
            for part, rows in zip(names, tensor.chunk(3), strict=True):
                made[name.replace("blocks.", prefix).replace(".qkv.", f".{part}.")] = rows.clone()
        elif name == "pos_embed":
            made["encoder_pos_embed"] = tensor
        elif name.startswith("norm."):
            made[f"encoder_{name}"] = tensor
        else:
            made[name.replace("blocks.", prefix)] = tensor
    return made


@pytest.mark.parametrize("prefix", ["module.backbone.", ""])
def test_dino_mc(small, tmp_path, prefix):
    path = tmp_path / "checkpoint.pth"
    torch.save(dino_checkpoint(small.state_dict(), prefix), path)
    vit = pl.load_backbone("dino_mc_small", weights=path, image_size=64)
    assert vit.spec.name == "dino_mc_small" and vit.spec.weights == str(path) and vit.spec.licence == "MIT"
    assert vit.patch_embed.patch_size == (8, 8) and vit.patch_embed.grid_size == (8, 8)
    assert same(pl.load_backbone("dino_mc_small", weights=path), small.state_dict())


@pytest.mark.parametrize(
    ("prefix", "split"),
    [
        ("encoder.", None), ("encoder.encoders.", ("q", "k", "v")), ("encoder.blocks.", ("q_proj", "k_proj", "v_proj")),
        ("module.encoder.", ("query", "key", "value")), ("blocks.", None),
    ],
)  # fmt: skip
def test_names_of_cross_scale_mae(tmp_path, prefix, split):
    path, state = tmp_path / "checkpoint.pth", tiny_vit().state_dict()
    torch.save({"model": authors_names(state, split is not None, prefix, split)}, path)
    got = cross_scale_mae_state(path)
    assert got.keys() == state.keys() and all(torch.equal(got[name], state[name]) for name in state)


def test_queries_and_keys_without_values_are_refused():
    with pytest.raises(ValueError, match=r"blocks.0.attn.qkv.weight cannot be fused: found \['k', 'q'\]"):
        fuse_qkv({f"blocks.0.attn.{part}.weight": torch.zeros(2, 2) for part in "qk"})


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("cross_scale_mae_base", {"model": {"encoder.0.wrap_att.norm.weight": torch.ones(3)}}, "wrap_att"),
        ("dino_mc_small", {"teacher": 3}, r"no plain dict.*entry 'teacher'"),
    ],
    ids=["xformers", "no dict"],
)
def test_files_without_the_weights_are_named(name, content, says, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=says):
        pl.load_backbone(name, weights=tmp_path / "other.pth")


def test_what_only_people_can_download_says_from_where():
    for name in ("dino_mc_small", "cross_scale_mae_large"):
        with pytest.raises(FileNotFoundError, match=r"drive\.google\.com.*weights=PATH.*'random'"):
            pl.load_backbone(name)
