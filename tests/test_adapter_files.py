"""The adapter alone on disk: what comes back, what is refused, and nothing is damaged on the way. The round trip of
every input and method is in test_registry."""

import json

import pytest
import torch
from helpers import COLOURS, SAVANNA, adapted, images, randomise, tiny_vit
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import peftlib as pl
from peftlib.backbones.loading import resize_
from peftlib.model import adapter_file

SMALL = dict(bands=SAVANNA, input=pl.EMB(width=4))


@pytest.fixture
def adapter(tmp_path):
    """A small adapter file with something in it."""
    return pl.save_adapter(randomise(adapted(pl.Deflect(rank=2), **SMALL)), tmp_path / "adapter.safetensors")


def rewrite(path, metadata=None, drop=(), **tensors):
    """The same file with some metadata or tensors changed, and signed again: not damage, but another content."""
    with safe_open(path, framework="pt") as file:
        facts = file.metadata() | (metadata or {})
    state = {name: tensor for name, tensor in (load_file(path) | tensors).items() if name not in drop}
    facts["digest"] = adapter_file._digest(facts, state)
    save_file(state, path, metadata=facts)


# --- round trip ---


def test_round_trip_of_options_bands_and_statistics(tmp_path):
    method, input = pl.Deflect(layers=(0, -1), low_rank_principal=2), pl.EMB(indices=("NDVI",), cells=2, pixels=3)
    bands = {"swir": 1610, "red": 665, "nir": 833, "green": 560, "blue": 490}
    model = randomise(adapted(method, bands, sensor="custom", input=input, rgb_white=0.25, nodata="zero"))
    x = images(bands, "custom")
    model.fit_normalization([x])
    x[0, 0, 3, 3] = float("nan")
    path = pl.save_adapter(model, tmp_path / "deep" / "er" / "adapter.safetensors")
    loaded = pl.load_adapter(tiny_vit(), path)
    assert (loaded.method, loaded.input, loaded.bands) == (method, input, model.bands)
    assert torch.equal(loaded(x), model(x))
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file is left


def test_another_image_size_at_load(adapter, tmp_path):
    model = pl.load_adapter(tiny_vit(), adapter, image_size=(48, 32))
    assert model.grid_size == (6, 4) and model(images(SAVANNA, size=(48, 32))).shape == (2, 26, 32)
    for size, says in ((50, r"50.*divisible"), (0, r"0, 0")):
        with pytest.raises(ValueError, match=says):
            pl.load_adapter(tiny_vit(), adapter, image_size=size)
    full = pl.save_adapter(adapted(pl.Full(), COLOURS), tmp_path / "full.safetensors")
    with pytest.raises(ValueError, match=r"tuned the position embedding at \(32, 32\)"):
        pl.load_adapter(tiny_vit(), full, image_size=64)
    small, x = tiny_vit(), images(SAVANNA)
    resize_(small, 16)  # the hash does not see positions, and these were resampled already
    assert (pl.load_adapter(small, adapter)(x) - pl.load_adapter(tiny_vit(), adapter)(x)).abs().max() < 1e-3


def test_saving_over_an_adapter_replaces_it_whole(adapter, monkeypatch):
    before = adapter.read_bytes()
    other = randomise(adapted(pl.LoRA(), SAVANNA))

    def interrupted(state, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(adapter_file, "save_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pl.save_adapter(other, adapter)
    assert adapter.read_bytes() == before and list(adapter.parent.iterdir()) == [adapter]
    pl.save_adapter(other, adapter)
    assert pl.load_adapter(tiny_vit(), adapter).method == pl.LoRA()


# --- what is refused ---


def test_an_adapter_of_another_backbone(adapter, vit):
    with torch.no_grad():
        vit.blocks[2].mlp.fc2.bias[0] *= 1 + 1e-6  # one bit
    for other in (tiny_vit(seed=1), tiny_vit(depth=2), vit):
        with pytest.raises(ValueError, match=r"adapter.safetensors belongs to backbone .* other weights"):
            pl.load_adapter(other, adapter)


def test_truncated_and_missing_files_are_named(adapter, tmp_path, vit):
    adapter.write_bytes(adapter.read_bytes()[:-9])
    with pytest.raises(ValueError, match=rf"{adapter.name} is no whole adapter"):
        pl.load_adapter(vit, adapter)
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=path.name):
            pl.load_adapter(vit, path)


def test_other_formats_are_named(tmp_path, vit):
    path = tmp_path / "weights.safetensors"
    for metadata in (None, {"format": "pt"}, {"format": "peftlib adapter 1"}):
        save_file(vit.state_dict(), path, metadata=metadata)
        with pytest.raises(ValueError, match=rf"{path.name} is no adapter.*peftlib adapter 3"):
            pl.load_adapter(vit, path)
    save_file(vit.state_dict(), path, metadata={"format": adapter_file.FORMAT})  # without its other parts
    with pytest.raises(ValueError, match=path.name):
        pl.load_adapter(vit, path)


NAME = "vit.blocks.0.auxiliary.V.weight"


def test_tensors_that_do_not_fit_are_named(adapter, vit):
    whole, unfit = adapter.read_bytes(), "does not fit.*{}.*1 in all"
    for change, says in (
        ({NAME: torch.tensor([[float("nan")]])}, f"non-finite.*{NAME}"), (dict(drop=(NAME,)), unfit.format(NAME)),
        ({NAME: torch.zeros(2, 2)}, unfit.format(NAME)), ({"vit.extra": torch.zeros(1)}, unfit.format("vit.extra")),
    ):  # fmt: skip
        adapter.write_bytes(whole)
        rewrite(adapter, **change)
        with pytest.raises(ValueError, match=says):
            pl.load_adapter(vit, adapter)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "novel"}, {"input": "novel"}, {"options": {"rank": 2, "novel": 1}},
        {"bands": {"sensor": "sentinel9", "bands": list(SAVANNA)}},
        {"backbone": {"mean": [0.5], "std": [0.5], "res": 10.0}},
    ],
    ids=str,
)  # fmt: skip
def test_configs_of_another_version_are_refused(change, adapter, vit):
    with safe_open(adapter, framework="pt") as file:
        config = json.loads(file.metadata()["config"])
    rewrite(adapter, metadata={"config": json.dumps(config | change)})
    with pytest.raises(ValueError):
        pl.load_adapter(vit, adapter)
