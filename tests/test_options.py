"""Every field of every method's config does something, and refuses what makes no sense."""

from dataclasses import fields, replace

import pytest
import torch
from helpers import SAVANNA, SENTINEL2, adapted, images, randomise

import peftlib as pl
from peftlib.deflect.time_series import series_bands

# (method, field) -> (config to start from, other value of the field). A field without a case fails the first test.
CASES = {
    ("frozen", "new_bands"): (pl.Frozen(), "nearest"),
    ("frozen", "train_patch_embed"): (pl.Frozen(), True),
    ("full", "new_bands"): (pl.Full(), "ignore"),
    ("full", "train_patch_embed"): (pl.Full(new_bands="mean"), False),
    ("patch_embed", "new_bands"): (pl.PatchEmbedding(), "random"),
    ("patch_embed", "train_patch_embed"): (pl.PatchEmbedding(new_bands="mean"), False),
    ("norm_tuning", "new_bands"): (pl.NormTuning(), "random"),
    ("norm_tuning", "train_patch_embed"): (pl.NormTuning(), True),
    ("bitfit", "new_bands"): (pl.BitFit(), "repeat"),
    ("bitfit", "train_patch_embed"): (pl.BitFit(), True),
    ("slr", "new_bands"): (pl.SLR(), "mean"),
    ("slr", "train_patch_embed"): (pl.SLR(), True),
    ("slr", "rank"): (pl.SLR(), 2),
    ("slr", "scalers"): (pl.SLR(), False),
    ("slr", "train_norms"): (pl.SLR(), True),
    ("slr", "targets"): (pl.SLR(), ("qkv",)),
    ("slr", "layers"): (pl.SLR(), (1,)),
    ("houlsby", "new_bands"): (pl.Houlsby(), "mean"),
    ("houlsby", "train_patch_embed"): (pl.Houlsby(), True),
    ("houlsby", "width"): (pl.Houlsby(), 8),
    ("houlsby", "activation"): (pl.Houlsby(), "tanh"),
    ("houlsby", "positions"): (pl.Houlsby(), ("mlp",)),
    ("houlsby", "layers"): (pl.Houlsby(), (0, 2)),
    ("vpt", "new_bands"): (pl.VPT(), "mean"),
    ("vpt", "train_patch_embed"): (pl.VPT(), True),
    ("vpt", "tokens"): (pl.VPT(), 7),
    ("vpt", "deep"): (pl.VPT(), False),
    ("vpt", "dropout"): (pl.VPT(), 0.5),
    ("earth_adapter", "new_bands"): (pl.EarthAdapter(), "mean"),
    ("earth_adapter", "train_patch_embed"): (pl.EarthAdapter(), True),
    ("earth_adapter", "width"): (pl.EarthAdapter(), 8),
    ("earth_adapter", "fourier_layers"): (pl.EarthAdapter(), "all"),
    ("earth_adapter", "cutoff"): (pl.EarthAdapter(), 1.0),
    ("lora", "new_bands"): (pl.LoRA(), "mean"),
    ("lora", "train_patch_embed"): (pl.LoRA(), True),
    ("lora", "rank"): (pl.LoRA(), 2),
    ("lora", "alpha"): (pl.LoRA(), 1.0),
    ("lora", "dropout"): (pl.LoRA(), 0.5),
    ("lora", "targets"): (pl.LoRA(), ("qkv",)),
    ("lora", "layers"): (pl.LoRA(), (1,)),
    ("deflect", "rank"): (pl.Deflect(), 3),
    ("deflect", "layers"): (pl.Deflect(), (0, -1)),
    ("deflect", "low_rank_principal"): (pl.Deflect(), 2),
    ("deflect", "constrain"): (pl.Deflect(), False),
    ("deflect", "reference_grad"): (pl.Deflect(), False),
    ("deflect", "width"): (pl.Deflect(), 8),
    ("deflect", "cells"): (pl.Deflect(), 2),
    ("deflect", "indices"): (pl.Deflect(), ("NDVI",)),
    ("deflect", "spectral"): (pl.Deflect(), "wavelengths"),
    ("deflect", "series"): (pl.Deflect(), "sequence"),
}
BANDS = {("deflect", "series"): series_bands(SENTINEL2, 2)}  # others: one date


def trained_tokens(method, vit) -> torch.Tensor:
    """Tokens after one gradient step from a randomised start: shows what changes the forward or the gradient."""
    tiny = len(vit.blocks) == 3
    model = randomise(adapted(method, vit=vit), 0.2 if tiny else 0.02)
    x = images(size=model.image_size)
    model.train()  # dropout shows in training only
    torch.manual_seed(0)
    tuned = [p for p in model.parameters() if p.requires_grad]
    if tuned:
        goal = torch.arange(vit.embed_dim) / vit.embed_dim
        gradients = torch.autograd.grad((model(x) - 2 * goal).square().mean(), tuned)
        with torch.no_grad():
            for p, g in zip(tuned, gradients, strict=True):
                p.sub_(0.05 * g)
    with torch.no_grad():
        return model.eval()(x)


def test_every_field_has_a_case():
    declared = {(name, f.name) for name, config in pl.METHODS.items() for f in fields(config)}
    assert set(CASES) == declared
    for (name, field), (start, value) in CASES.items():
        assert start.name == name and getattr(start, field) != value


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_every_field_changes_the_model(case, any_vit):
    start, value = CASES[case]
    other = replace(start, **{case[1]: value})
    models = [adapted(m, BANDS.get(case, SENTINEL2), any_vit) for m in (start, other)]
    shapes = [{n: p.shape for n, p in model.named_parameters() if p.requires_grad} for model in models]
    if shapes[0] == shapes[1]:
        assert not torch.allclose(trained_tokens(start, any_vit), trained_tokens(other, any_vit), atol=1e-4)


def test_the_comparison_can_tell_equal_models(any_vit):
    assert torch.equal(*(trained_tokens(pl.Deflect(), any_vit) for _ in range(2)))


def test_fields_change_what_they_say():
    assert adapted(pl.Deflect(rank=3)).vit.blocks[0].auxiliary.U.weight.shape == (3, 32)
    assert adapted(pl.Deflect(width=8)).auxiliary.pixel_mlp[0].weight.shape[0] == 8
    assert adapted(pl.Deflect(low_rank_principal=2)).vit.blocks[0].principal.U.weight.shape == (2, 32)
    assert adapted(pl.Deflect(indices=())).auxiliary.pixel_mlp[0].weight.shape[1] == 10
    assert adapted(pl.Deflect(indices=("NDVI", "NDREI"))).auxiliary.pixel_mlp[0].weight.shape[1] == 12
    assert adapted(pl.Deflect(cells=2)).auxiliary.patch_mlp[0].weight.shape == (4 * 64,)
    kinds = [type(b).__name__ for b in adapted(pl.Deflect(layers=(-1, 0))).vit.blocks]
    assert kinds == ["UntangledBlock", "Block", "UntangledBlock"]
    assert [type(b).__name__ for b in adapted(pl.Deflect(layers=())).vit.blocks] == ["Block"] * 3


def test_alpha_scales_the_update(x):
    """With B A fixed, twice alpha is a B of twice the size."""
    one, two = (randomise(adapted(pl.LoRA(alpha=a, rank=4, layers=(2,), targets=("fc2",)))) for a in (4.0, 8.0))
    layer = two.vit.blocks[2].mlp.fc2
    with torch.no_grad():
        layer.B.weight.div_(2)
    torch.testing.assert_close(one(x), two(x))


def test_lora_is_the_low_rank_update(x):
    model = randomise(adapted(pl.LoRA(rank=4, alpha=6.0)))
    merged = adapted(pl.Frozen())
    with torch.no_grad():
        for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            for ours, theirs in zip(model.vit.blocks, merged.vit.blocks, strict=True):
                layer = ours.get_submodule(name)
                theirs.get_submodule(name).weight.add_(6.0 / 4 * layer.B.weight @ layer.A.weight)
    torch.testing.assert_close(model(x), merged(x), rtol=1e-4, atol=1e-4)


def test_full_on_rgb_alone_tunes_everything():
    model = adapted(pl.Full(), ("B04", "B03", "B02"))
    assert all(p.requires_grad for p in model.vit.parameters())
    assert model.vit.patch_embed.proj.weight.shape[1] == 3


def test_full_can_spare_the_patch_embedding():
    tuned = {
        n for n, p in adapted(pl.Full(new_bands="mean", train_patch_embed=False)).named_parameters() if p.requires_grad
    }
    assert tuned and not any("patch_embed" in name for name in tuned)


def test_inflated_methods_see_the_new_bands_and_others_do_not(x):
    brighter = x.clone()
    brighter[:, 7] += 0.2
    for method, sees in ((pl.Frozen(), False), (pl.Frozen(new_bands="mean"), True), (pl.LoRA(), False)):
        model = adapted(method)
        assert torch.equal(model(x), model(brighter)) is not sees, method


@pytest.mark.parametrize("config", [pl.Deflect, pl.LoRA])
@pytest.mark.parametrize("layers", [(3,), (-4,), (0, 0), (0, -3), ("0",), "last", 2, None, (1.0,)])
def test_layers_that_do_not_exist_are_named(config, layers, vit):
    with pytest.raises(ValueError, match="layers"):
        pl.adapt(vit, config(layers=layers), SAVANNA)


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (pl.Deflect, "rank", 0),
        (pl.Deflect, "rank", 2.0),
        (pl.Deflect, "rank", True),
        (pl.Deflect, "rank", "8"),
        (pl.Deflect, "low_rank_principal", -1),
        (pl.Deflect, "width", 0),
        (pl.Deflect, "cells", 0),
        (pl.Deflect, "indices", "NDVI"),
        (pl.Deflect, "constrain", "no"),
        (pl.Deflect, "spectral", "nm"),
        (pl.LoRA, "rank", 0),
        (pl.LoRA, "alpha", "big"),
        (pl.LoRA, "alpha", float("nan")),
        (pl.LoRA, "targets", ()),
        (pl.LoRA, "targets", "qkv"),
        (pl.LoRA, "targets", ("qkv", "fc3")),
        (pl.LoRA, "targets", ("qkv", "qkv")),
        (pl.LoRA, "targets", ("qkv", "v")),
        (pl.LoRA, "dropout", 1.0),
        (pl.LoRA, "new_bands", "copy"),
        (pl.Full, "new_bands", None),
        (pl.Frozen, "train_patch_embed", "no"),
    ],
)
def test_impossible_values_are_named(config, field, value):
    with pytest.raises(ValueError) as error:
        config(**{field: value})
    assert field in str(error.value) and repr(value) in str(error.value)


def test_unknown_index_is_refused_at_adapt(vit):
    with pytest.raises(ValueError, match="NDVX"):
        pl.adapt(vit, pl.Deflect(indices=("NDVX",)), SENTINEL2)
    with pytest.raises(ValueError, match=r"NBR.*S2"):
        pl.adapt(vit, pl.Deflect(indices=("NBR",)), SAVANNA)


def test_configs_are_values():
    assert pl.Deflect() == pl.Deflect(rank=6) and hash(pl.LoRA()) == hash(pl.LoRA(rank=16))
    with pytest.raises(AttributeError):
        pl.Deflect().rank = 3
