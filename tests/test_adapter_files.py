"""The adapter alone on disk: what comes back, what is refused, and nothing is damaged on the way."""

import json

import pytest
import torch
from helpers import SAVANNA, SENTINEL2, adapted, images, randomise, tiny_vit
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import peftlib as pl
from peftlib.backbones.loading import backbone_hash, resize_
from peftlib.model import adapter_file as adapters

METHODS = [pytest.param(config(), id=name) for name, config in pl.METHODS.items()]


@pytest.fixture
def adapter(tmp_path):
    """A small adapter file with something in it."""
    return pl.save_adapter(randomise(adapted(pl.Deflect(rank=2, width=4), SAVANNA)), tmp_path / "adapter.safetensors")


def rewrite(path, metadata=None, drop=(), **tensors):
    """The same file with some metadata or tensors changed, and signed again: not damage, but another content."""
    with safe_open(path, framework="pt") as file:
        facts = file.metadata() | (metadata or {})
    state = {name: tensor for name, tensor in (load_file(path) | tensors).items() if name not in drop}
    facts["digest"] = adapters._digest(facts, state)
    save_file(state, path, metadata=facts)


# --- round trip ---


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bands", [SENTINEL2, SAVANNA[::-1]], ids=["13", "4"])
def test_round_trip(method, bands, tmp_path):
    model = randomise(adapted(method, bands, rgb_white=0.25, nodata="zero", image_size=(32, 48)))
    x = images(bands, size=(32, 48))
    model.fit_normalization([x])
    x[0, 0, 3, 3] = float("nan")
    path = pl.save_adapter(model, tmp_path / "deep" / "er" / "adapter.safetensors")
    loaded = pl.load_adapter(tiny_vit(), path)
    assert torch.equal(loaded(x), model(x))
    assert loaded.method == model.method and loaded.bands == model.bands and loaded.image_size == (32, 48)
    assert torch.equal(loaded.reflectance.mean, model.reflectance.mean)
    assert torch.equal(loaded.reflectance.std, model.reflectance.std)
    tuned = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (model, loaded)]
    assert tuned[0] == tuned[1]
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file is left


@pytest.mark.parametrize("method", [pl.Frozen(), pl.Full(), pl.LoRA()])
def test_round_trip_of_rgb_alone(method, tmp_path):
    bands = ("B04", "B03", "B02")
    model = randomise(adapted(method, bands))
    loaded = pl.load_adapter(tiny_vit(), pl.save_adapter(model, tmp_path / "a.safetensors"))
    assert torch.equal(loaded(images(bands)), model(images(bands)))


@pytest.mark.parametrize(
    "method",
    [
        pl.Deflect(layers=(0, -1), indices=("NDVI",), cells=2, low_rank_principal=2),
        pl.LoRA(targets=("fc1",), layers=(1,), new_bands="nearest", train_patch_embed=True),
        pl.Frozen(new_bands="random"),
    ],
)
def test_round_trip_of_options(method, tmp_path):
    bands = {"swir": 1610, "red": 665, "nir": 833, "green": 560, "blue": 490}
    model = randomise(adapted(method, bands, sensor="custom"))
    loaded = pl.load_adapter(tiny_vit(), pl.save_adapter(model, tmp_path / "a.safetensors"))
    x = images(bands, "custom")
    assert loaded.method == method and loaded.bands == model.bands
    assert torch.equal(loaded(x), model(x))


def test_the_file_says_what_it_is(adapter):
    with safe_open(adapter, framework="pt") as file:
        facts, names = file.metadata(), set(file.keys())
    config = json.loads(facts["config"])
    assert config["method"] == "deflect" and config["options"]["rank"] == 2
    assert config["bands"] == list(SAVANNA) and config["sensor"] == "sentinel2"
    assert facts["backbone_hash"] == backbone_hash(tiny_vit()) and facts["format"]
    model = adapted(pl.Deflect(rank=2, width=4), SAVANNA)
    tuned = {n for n, p in model.named_parameters() if p.requires_grad}
    assert names == tuned | {"reflectance.mean", "reflectance.std"}  # nothing of the backbone


def test_another_image_size_at_load(adapter):
    model = pl.load_adapter(tiny_vit(), adapter, image_size=(48, 32))
    assert model.grid_size == (6, 4) and model(images(SAVANNA, size=(48, 32))).shape == (2, 26, 32)
    with pytest.raises(ValueError, match=r"50.*divisible"):
        pl.load_adapter(tiny_vit(), adapter, image_size=50)
    with pytest.raises(ValueError, match=r"0, 0"):
        pl.load_adapter(tiny_vit(), adapter, image_size=0)


def test_a_backbone_at_another_image_size_is_refused_or_gives_the_same(tmp_path):
    """Resampling its position grid twice would be another model, and the hash does not see positions."""
    model = randomise(adapted(pl.Deflect(), SAVANNA, image_size=64))
    path = pl.save_adapter(model, tmp_path / "a.safetensors")
    small = tiny_vit()
    resize_(small, 16)
    try:
        loaded = pl.load_adapter(small, path)
    except ValueError:
        return
    x = images(SAVANNA, size=(64, 64))
    assert (loaded(x) - model(x)).abs().max() < 1e-3


@pytest.mark.parametrize("inplace", [False, True])
def test_load_leaves_the_vit_unless_asked(inplace, adapter, vit):
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    model = pl.load_adapter(vit, adapter, inplace=inplace)
    assert (model.vit is vit) is inplace
    if not inplace:
        assert all(torch.equal(vit.state_dict()[name], tensor) for name, tensor in before.items())


def test_saving_over_an_adapter_replaces_it_whole(adapter, monkeypatch):
    before = adapter.read_bytes()
    other = randomise(adapted(pl.LoRA(), SAVANNA))

    def interrupted(state, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(adapters, "save_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pl.save_adapter(other, adapter)
    assert adapter.read_bytes() == before and list(adapter.parent.iterdir()) == [adapter]
    pl.save_adapter(other, adapter)
    assert pl.load_adapter(tiny_vit(), adapter).method == pl.LoRA()


# --- what is refused ---


def test_an_adapter_of_another_backbone(adapter):
    with pytest.raises(ValueError, match=r"adapter.safetensors belongs to backbone .* other weights"):
        pl.load_adapter(tiny_vit(seed=1), adapter)
    with pytest.raises(ValueError, match="belongs to backbone"):
        pl.load_adapter(tiny_vit(depth=2), adapter)


def test_one_changed_bit_makes_another_backbone(adapter, vit):
    with torch.no_grad():
        vit.blocks[2].mlp.fc2.bias[0] *= 1 + 1e-6
    with pytest.raises(ValueError, match="belongs to backbone"):
        pl.load_adapter(vit, adapter)


def test_no_file(tmp_path, vit):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=path.name):
            pl.load_adapter(vit, path)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.9, 0.9999])
def test_truncated_files_are_refused_and_left_alone(share, adapter, vit):
    whole = adapter.read_bytes()
    adapter.write_bytes(whole[: int(len(whole) * share)])
    cut = adapter.read_bytes()
    with pytest.raises(ValueError, match=rf"{adapter.name} is not a whole"):
        pl.load_adapter(vit, adapter)
    assert adapter.read_bytes() == cut
    pl.adapt(vit, pl.Frozen(), SAVANNA)  # nor is the ViT spoilt


def test_flipped_bytes_never_give_another_error_or_a_silent_change(adapter, vit):
    """Every damaged byte is either refused as ValueError or does not matter to the loaded model."""
    whole = adapter.read_bytes()
    x = images(SAVANNA)
    expected = pl.load_adapter(vit, adapter)(x)
    end = 8 + int.from_bytes(whole[:8], "little")
    bad = {}
    for position in [*range(8, end, 13), *range(end, len(whole), len(whole) // 12)]:
        damaged = bytearray(whole)
        damaged[position] ^= 0x01
        adapter.write_bytes(damaged)
        context = bytes(damaged[max(0, position - 12) : position + 6])
        try:
            if not torch.equal(pl.load_adapter(vit, adapter)(x), expected):
                bad[position] = ("silent", context)
        except ValueError:
            pass
        except Exception as error:
            bad[position] = (type(error).__name__, context)
    assert not bad, f"{len(bad)} damaged bytes: {bad}"


def test_other_safetensors_files(tmp_path, vit):
    path = tmp_path / "weights.safetensors"
    for metadata in (None, {"format": "pt"}, {"format": "peftlib adapter 99"}):
        save_file(vit.state_dict(), path, metadata=metadata)
        with pytest.raises(ValueError, match=rf"{path.name} is no adapter.*peftlib adapter 1"):
            pl.load_adapter(vit, path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_adapters(value, adapter, vit):
    name = "vit.blocks.0.auxiliary.V.weight"
    tensor = load_file(adapter)[name]
    tensor[0, 0] = value
    rewrite(adapter, **{name: tensor})
    with pytest.raises(ValueError, match=rf"non-finite.*{name}"):
        pl.load_adapter(vit, adapter)


def test_tensors_that_do_not_fit_are_named(adapter, vit):
    name = "vit.blocks.0.auxiliary.V.weight"
    whole = adapter.read_bytes()
    for change in (dict(drop=(name,)), {name: torch.zeros(2, 2)}, {"vit.extra": torch.zeros(1)}):
        adapter.write_bytes(whole)
        rewrite(adapter, **change)
        with pytest.raises(ValueError, match=r"does not fit.*(V.weight|vit.extra).*1 in all"):
            pl.load_adapter(vit, adapter)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "novel"},
        {"options": {"rank": 2, "novel": 1}},
        {"options": {"rank": 0}},
        {"sensor": "sentinel9"},
        {"bands": ["B02", "B03"]},
    ],
    ids=str,
)
def test_configs_of_another_version_are_refused(change, adapter, vit):
    with safe_open(adapter, framework="pt") as file:
        config = json.loads(file.metadata()["config"])
    rewrite(adapter, metadata={"config": json.dumps(config | change)})
    with pytest.raises(ValueError):
        pl.load_adapter(vit, adapter)


def test_metadata_without_its_parts_is_refused(adapter, vit):
    state = load_file(adapter)
    save_file(state, adapter, metadata={"format": "peftlib adapter 1"})
    with pytest.raises(ValueError, match=adapter.name):
        pl.load_adapter(vit, adapter)
