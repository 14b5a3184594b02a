"""merge: an adaptation folded into a plain timm ViT, and what is refused because it cannot be."""

import copy

import pytest
import torch
from helpers import SAVANNA, SENTINEL2, adapted, images, randomise, tiny_vit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import peftlib as pl

RGB = ("B04", "B03", "B02")
ZERO = dict(new_bands="zero", train_patch_embed=True)
METHODS = [
    pl.LoRA(),
    pl.LoRA(rank=4, alpha=6.0, targets=("qkv", "fc2"), layers=(0, -1), new_bands="mean"),
    pl.LoRA(targets=("q", "v")),
    pl.LoRA(targets=("k", "proj"), layers=(1,), new_bands="nearest"),
    pl.LoRA(targets=("q", "k", "v"), dropout=0.5, train_patch_embed=True),
    pl.LoRA(**ZERO),
    pl.SLR(),
    pl.SLR(scalers=False, train_norms=True),
    pl.SLR(rank=3, targets=("proj", "fc1"), layers=(2,), new_bands="mean", train_patch_embed=True),
    pl.NormTuning(),
    pl.NormTuning(new_bands="nearest"),
    pl.BitFit(),
    pl.BitFit(**ZERO),
    pl.Full(),
    pl.Full(new_bands="mean", train_patch_embed=False),
    pl.PatchEmbedding(),
    pl.PatchEmbedding(new_bands="repeat"),
    pl.Frozen(),
    pl.Frozen(new_bands="random"),
]
every_method = pytest.mark.parametrize("method", METHODS, ids=str)


def assert_merges(model: pl.AdaptedViT, x: torch.Tensor) -> VisionTransformer:
    """In float32: the largest difference seen is 3e-6, at tokens of size 4."""
    merged = pl.merge(model)
    with torch.no_grad():
        expected = model.eval()(x)
        assert (merged.forward_features(model.normalize(x)) - expected).abs().max() <= 1e-5
    return merged


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


# --- what can be merged ---


@every_method
def test_the_merged_vit_says_what_the_model_says(method, x):
    model = randomise(adapted(method)).fit_normalization([x])
    start = adapted(method).fit_normalization([x])(x)
    merged = assert_merges(model, x)
    trained = any(p.requires_grad for p in model.parameters())
    assert trained is ((model(x) - start).abs().max() > 1e-2).item()
    assert merged.patch_embed.proj.in_channels == (13 if method.inflated else 3) == model.normalize(x).shape[1]


@every_method
def test_the_merged_vit_is_a_plain_timm_vit(method):
    merged, plain = pl.merge(randomise(adapted(method)).train()), tiny_vit()
    assert type(merged) is VisionTransformer
    assert list(merged.state_dict()) == list(plain.state_dict())
    assert [(n, type(m)) for n, m in merged.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    skip = "patch_embed.proj.weight" if method.inflated else ""
    shapes = [{n: t.shape for n, t in vit.state_dict().items() if n != skip} for vit in (merged, plain)]
    assert shapes[0] == shapes[1]
    assert all(p.requires_grad for p in merged.parameters()) and all(p.is_leaf for p in merged.parameters())
    assert not any(module.training for module in merged.modules())
    assert set(vars(merged)) - {"spec"} == set(vars(plain)) - {"spec"}


@every_method
def test_the_model_that_was_merged_is_unchanged(method, x):
    model = randomise(adapted(method)).train()
    before, tuned = snapshot(model), {name for name, p in model.named_parameters() if p.requires_grad}
    merged = pl.merge(model)
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.add_(1.0)  # shares no memory
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in after)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == tuned and model.training
    if tuned:
        model(x).square().mean().backward()
        assert all(model.get_parameter(name).grad is not None for name in tuned)


@pytest.mark.parametrize("method", [pl.LoRA(dropout=0.3), pl.LoRA(targets=("q", "v"), dropout=0.3), pl.SLR()], ids=str)
def test_after_training(method, x):
    model = adapted(method).train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    start = copy.deepcopy(model).eval()(x)
    for step in range(5):
        optimiser.zero_grad()
        (model(images(seed=step)) - 1.0).square().mean().backward()
        optimiser.step()
    assert_merges(model, x)
    assert (model(x) - start).abs().max() > 1e-2


@pytest.mark.parametrize("method", [pl.LoRA(), pl.LoRA(targets=("q", "k")), pl.SLR()], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        dict(qkv_bias=False),
        dict(qkv_bias=False, proj_bias=False),
        dict(class_token=False, reg_tokens=0, global_pool="avg"),
        dict(pre_norm=True, init_values=None, num_classes=5),
        dict(dynamic_img_size=True),
    ],
    ids=str,
)
def test_other_forms_of_vit(method, options, x):
    merged = assert_merges(randomise(adapted(method, vit=tiny_vit(**options))), x)
    assert list(merged.state_dict()) == list(tiny_vit(**options).state_dict())


@pytest.mark.parametrize("method", [pl.LoRA(), pl.SLR(), pl.Full(), pl.BitFit()], ids=str)
def test_images_that_are_not_square(method):
    model = randomise(adapted(method, SAVANNA, image_size=(40, 24)))
    merged = assert_merges(model, images(SAVANNA, size=(40, 24)))
    assert tuple(merged.patch_embed.img_size) == (40, 24) and merged.pos_embed.shape[1] == 15 + 2


@pytest.mark.parametrize("method", [pl.LoRA(), pl.LoRA(targets=("v",)), pl.SLR(), pl.NormTuning()], ids=str)
def test_in_double_precision_nothing_is_lost(method, x):
    model = randomise(adapted(method)).double()
    x = x.double()
    with torch.no_grad():
        assert (pl.merge(model).forward_features(model.normalize(x)) - model(x)).abs().max() <= 1e-12


def test_missing_pixels_are_normalised_away(x):
    model = randomise(adapted(pl.LoRA(new_bands="mean"), nodata="zero"))
    x[0, 3, 5, 5] = float("nan")
    assert_merges(model, x)


# --- what it is good for ---


@every_method
def test_the_spec_says_where_the_weights_come_from(method):
    vit = tiny_vit()
    vit.spec = pl.BackboneSpec("tiny", weights="nowhere", licence="MIT", mean=(0.5, 0.4, 0.3), channels="BGR")
    spec = pl.merge(adapted(method, vit=vit)).spec
    assert spec.weights == f"nowhere, merged with {method.name}" and vit.spec.weights == "nowhere"
    assert (spec.name, spec.licence, spec.mean, spec.channels) == ("tiny", "MIT", (0.5, 0.4, 0.3), "BGR")


@pytest.mark.parametrize("method", [m for m in METHODS if not m.inflated], ids=str)
def test_what_reads_rgb_can_be_adapted_again(method, x):
    first = randomise(adapted(method))
    second = pl.adapt(pl.merge(first), pl.Deflect(), SENTINEL2)
    assert (second(x) - first.eval()(x)).abs().max() <= 1e-5
    third = randomise(adapted(pl.LoRA(rank=2), RGB, vit=pl.merge(first)))
    assert pl.merge(third).spec.weights == f"given, merged with {method.name}, merged with lora"


def test_another_image_size_after_the_merge_starts_from_the_pretrained_positions(x):
    merged = pl.merge(randomise(adapted(pl.LoRA(), image_size=64)))
    again = pl.adapt(merged, pl.Frozen(), SENTINEL2, image_size=32)
    assert (again(x) - randomise(adapted(pl.LoRA()))(x)).abs().max() <= 1e-5


def test_what_reads_all_bands_is_no_rgb_model():
    with pytest.raises(ValueError, match="13 channels"):
        pl.adapt(pl.merge(adapted(pl.PatchEmbedding())), pl.LoRA(), SENTINEL2)


# --- what cannot be merged ---


@pytest.mark.parametrize(
    ("method", "left"),
    [
        (pl.Deflect(), "blocks.0 is a UntangledBlock"),
        (pl.Deflect(layers=(2,)), "blocks.2 is a UntangledBlock"),
        (pl.Houlsby(), "blocks.0.ls1"),
        (pl.Houlsby(positions=("mlp",), layers=(1,)), "blocks.1.ls2"),
        (pl.VPT(), "blocks.0 is a PromptedBlock"),
        (pl.VPT(deep=False), "blocks.0 is a PromptedBlock"),
        (pl.EarthAdapter(), "blocks.0 is a FrequencyAdaptedBlock"),
        (pl.Deflect(layers=()), "auxiliary"),
    ],
    ids=str,
)
def test_what_a_plain_vit_cannot_do_is_refused(method, left, x):
    model = randomise(adapted(method))
    before = model(x)
    with pytest.raises(ValueError) as error:
        pl.merge(model)
    assert all(text in str(error.value) for text in (method.name, left, "LoRA", "SLR", "BitFit")), str(error.value)
    assert torch.equal(model(x), before)


def test_every_method_is_merged_or_refused():
    merged = {method.name for method in METHODS}
    assert merged | {"deflect", "houlsby", "vpt", "earth_adapter"} == set(pl.METHODS)


def test_what_is_no_adapted_model_is_named(vit):
    with pytest.raises(ValueError, match="VisionTransformer"):
        pl.merge(vit)
