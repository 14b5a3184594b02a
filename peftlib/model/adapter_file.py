"""The adapter alone, on disk: what a task adds to a backbone, with the facts that make it readable again."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from peftlib.backbones.loading import BackboneSpec, backbone_hash, pair, spec_of
from peftlib.deflect.time_series import series_bands
from peftlib.files import atomic_path, fingerprint, readable
from peftlib.methods import input_from, method_from
from peftlib.model.adapted_vit import AdaptedViT, adapt
from peftlib.sensors.bands import band_set

FORMAT = "peftlib adapter 3"


def save_adapter(model: AdaptedViT, path: str | Path) -> Path:
    """Write tuned parameters and normalisation, with the config and the backbone's hash, as safetensors.

    Written by rename: an interrupted call leaves the former file whole.
    """
    config = {
        "method": model.method.name,
        "options": model.method.options(),
        "input": model.input.name,
        "input_options": model.input.options(),
        "bands": model.bands.to_json(),
        "image_size": model.image_size,
        "rgb_white": model.reflectance.rgb_white,
        "nodata": model.reflectance.nodata,
        "precision": model.precision,
        "backbone": _backbone_facts(model.spec),
        "reading": model.reading,
        "metadata": () if model.metadata is None else model.metadata.names,
    }
    state = {name: tensor.contiguous().cpu() for name, tensor in model.adapter_state().items()}
    backbone = {"backbone": model.spec.name, "backbone_hash": model.backbone_hash}
    metadata = {"format": FORMAT, "config": json.dumps(config)} | backbone
    metadata["digest"] = _digest(metadata, state)
    path = Path(path)
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata=metadata)
    return path


def adapter_bytes(model: AdaptedViT) -> int:
    """Bytes of the tensors that ``save_adapter`` writes; the file has a header of some kB beside them."""
    return sum(tensor.nbytes for tensor in model.adapter_state().values())


def load_adapter(
    vit: VisionTransformer,
    path: str | Path,
    image_size: int | tuple[int, int] | None = None,
    precision: str | None = None,
) -> AdaptedViT:
    """Adapt a backbone with an adapter from disk.

    Args:
        vit: the backbone that the adapter was trained on; path: a file of ``save_adapter``.
        image_size: side, or (H, W), in pixels, where images are of another size than in training.
        precision: as in ``adapt``; None is that of training.

    FileNotFoundError: no such file; ValueError: not a whole adapter file, or one of another backbone.
    """
    path = Path(path)
    metadata, state = _read_adapter(path)
    if (found := backbone_hash(vit)) != metadata["backbone_hash"]:
        raise ValueError(
            f"adapter {path.name} belongs to backbone {metadata['backbone']} ({metadata['backbone_hash'][:12]}), "
            f"and this is {spec_of(vit).name} with other weights ({found[:12]})"
        )
    config = json.loads(metadata["config"])
    trained_on, facts = config["backbone"], _backbone_facts(spec_of(vit))
    if trained_on | facts != trained_on:
        raise ValueError(f"adapter {path.name} was trained on {trained_on}, this is {facts} (res: see load_backbone)")
    trained_at = pair(config["image_size"])
    size = trained_at if image_size is None else pair(image_size)
    if "vit.pos_embed" in state and size != trained_at:
        raise ValueError(f"adapter {path.name} tuned the position embedding at {trained_at}, for that size alone")
    method = method_from(config["method"], config["options"])
    input = input_from(config["input"], config["input_options"])
    others = {option: config[option] for option in ("rgb_white", "nodata", "metadata")}
    others["precision"] = precision or config["precision"]
    bands = (series_bands if "dates" in config["bands"] else band_set)(**config["bands"])
    model = adapt(vit, method, bands, image_size=size, input=input, **others)
    here, there = ({(name, t.shape) for name, t in tensors.items()} for tensors in (model.adapter_state(), state))
    if wrong := sorted({name for name, _ in here ^ there}):
        raise ValueError(f"adapter {path.name} does not fit {method} on {input}: {wrong[:5]} ({len(wrong)} in all)")
    model.reading = config.get("reading", {})
    model.load_state_dict(state, strict=False)  # names and shapes were checked above; the rest is the backbone
    return model


def _read_adapter(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with readable(path, "adapter"), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no adapter of this version (format {metadata.get('format')!r}, need {FORMAT!r})")
    if metadata.get("digest") != _digest(metadata, state):
        raise ValueError(f"{path} is damaged: its contents are not those that were saved")
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ValueError(f"{path} has non-finite values in {bad[:5]}")
    return metadata, state


def _backbone_facts(spec: BackboneSpec) -> dict:
    """What the weights do not show and the tokens depend on."""
    return {"mean": list(spec.mean), "std": list(spec.std), "res": spec.res}


def _digest(metadata: Mapping[str, str], state: Mapping[str, Tensor]) -> str:
    """sha256 over everything in an adapter file, so that a flipped bit is an error and no other model."""
    facts = json.dumps({key: value for key, value in metadata.items() if key != "digest"}, sort_keys=True)
    return hashlib.sha256((facts + fingerprint(state)).encode()).hexdigest()
