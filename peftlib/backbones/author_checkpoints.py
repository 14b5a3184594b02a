"""Checkpoints as their authors published them, in timm's names, without heads and decoders; unknown names stay."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from peftlib.files import load_state


def dino_mc_state(path: str | Path) -> dict[str, Tensor]:
    """DINO-MC (Wanyan et al., 2023): a DINO checkpoint whose entry ``teacher`` holds backbone and projection head."""
    state = load_state(path, entry="teacher")
    bare = {re.sub(r"^(module\.)?(backbone\.)?", "", name): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in bare.items() if not name.startswith("head.")}


# The decoder of the masked autoencoder, its predictor of the second scale, a classifier.
_CROSS_SCALE_REST = ("decoder", "mask_token", "predictor.", "head.")
_CROSS_SCALE_NAMES = (
    (r"^module\.", ""),
    (r"^encoder_pos_embed$", "pos_embed"),
    (r"^encoder_norm\.", "norm."),
    (r"^encoder\.(encoders\.)?(?=\d+\.)", "blocks."),
    (r"^encoder\.", ""),
)


def cross_scale_mae_state(path: str | Path) -> dict[str, Tensor]:
    """Cross-Scale MAE (Tang et al., 2023): a masked autoencoder under ``model``, perhaps with split q, k, v.

    xformers' blocks, whose norms lie elsewhere than timm's, stay as they are: loading refuses their names.
    """
    renamed = {}
    for name, tensor in load_state(path, entry="model").items():
        for theirs, ours in _CROSS_SCALE_NAMES:
            name = re.sub(theirs, ours, name)
        if not name.startswith(_CROSS_SCALE_REST):
            renamed[name] = tensor
    return fuse_qkv(renamed)


_SPLIT = re.compile(r"(.*\.attn\.)(?:in_proj_container\.)?(q|k|v)(?:_proj|uery|ey|alue)?\.(weight|bias)")


def fuse_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``attn.q``, ``attn.k``, ``attn.v`` (or ``q_proj``, ``query``, ...) -> timm's ``attn.qkv``, rows in that order."""
    fused: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if match := _SPLIT.fullmatch(name):
            parts.setdefault(f"{match[1]}qkv.{match[3]}", {})[match[2]] = tensor
        else:
            fused[name] = tensor
    for name, found in parts.items():
        if set(found) != set("qkv"):
            raise ValueError(f"{name} cannot be fused: found {sorted(found)}, need q, k and v")
        fused[name] = torch.cat([found[part] for part in "qkv"])
    return fused
