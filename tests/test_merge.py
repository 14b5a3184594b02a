"""merge: an adaptation folded into a plain timm ViT, and what is refused because it cannot be."""

import pytest
import torch
from helpers import SAVANNA, SENTINEL2, adapted, images, randomise, tiny_vit, tuned
from timm.models.vision_transformer import VisionTransformer

import peftlib as pl

ZERO, MEAN = pl.Inflated(), pl.Inflated("mean", train=False)
PAIRS = [
    (pl.LoRA(rank=4, alpha=6.0, targets=("qkv", "fc2"), layers=(0, -1)), MEAN),
    (pl.LoRA(targets=("q", "v"), dropout=0.5), ZERO),
    (pl.SLR(train_norms=True), pl.Inflated("nearest")),
    (pl.APLA(share=0.25), MEAN),
    (pl.NormTuning(), pl.RGB()),
    (pl.BitFit(), ZERO),
    (pl.Full(), ZERO),
    (pl.Frozen(), pl.Inflated("random")),
]
EVERY = pytest.mark.parametrize(("method", "input"), PAIRS, ids=str)


def assert_merges(model: pl.AdaptedViT, x: torch.Tensor) -> VisionTransformer:
    """In float32: the largest difference seen is 3e-6, at tokens of size 4."""
    merged = pl.merge(model)
    with torch.no_grad():
        expected = model.eval()(x)
        assert (merged.forward_features(model.normalize(x)) - expected).abs().max() <= 1e-5
    return merged


@EVERY
def test_the_merged_vit_is_a_plain_one_that_says_what_the_model_says(method, input, x):
    model = randomise(adapted(method, input=input)).fit_normalization([x]).train()
    before, names = {n: t.clone() for n, t in model.state_dict().items()}, tuned(model)
    merged, plain = assert_merges(model, x), tiny_vit()
    assert type(merged) is VisionTransformer
    assert [(n, type(m)) for n, m in merged.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    assert list(merged.state_dict()) == list(plain.state_dict())
    assert merged.patch_embed.proj.in_channels == (3 if input == pl.RGB() else 13) == model.normalize(x).shape[1]
    assert all(p.requires_grad and p.is_leaf for p in merged.parameters()) and not merged.training
    assert set(vars(merged)) - {"spec"} == set(vars(plain)) - {"spec"}
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.add_(1.0)  # shares no memory with the model, which is unchanged
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in after)
    assert tuned(model) == names


@pytest.mark.parametrize("method", [pl.LoRA(targets=("q", "k")), pl.SLR()], ids=str)
@pytest.mark.parametrize("options", [dict(qkv_bias=False), dict(pre_norm=True, init_values=None)], ids=str)
def test_other_forms_of_vit_and_images_that_are_not_square(method, options):
    model = randomise(adapted(method, SAVANNA, image_size=(40, 24), vit=tiny_vit(**options), nodata="zero"))
    x = images(SAVANNA, size=(40, 24))
    x[0, 3, 5, 5] = float("nan")
    merged = assert_merges(model, x)
    assert list(merged.state_dict()) == list(tiny_vit(**options).state_dict())
    assert tuple(merged.patch_embed.img_size) == (40, 24) and merged.pos_embed.shape[1] == 15 + 2


def test_what_reads_rgb_can_be_adapted_again_at_another_size(x):
    vit = tiny_vit()
    vit.spec = pl.BackboneSpec("tiny", weights="nowhere", licence="MIT", mean=(0.5, 0.4, 0.3))
    first = randomise(adapted(pl.LoRA(), vit=vit, image_size=64))
    merged = pl.merge(first)
    assert merged.spec.weights == "nowhere, merged with lora" and vit.spec.weights == "nowhere"
    assert (merged.spec.name, merged.spec.mean) == ("tiny", (0.5, 0.4, 0.3))
    second = pl.adapt(merged, pl.Deflect(), SENTINEL2, image_size=32)  # from the pretrained positions
    assert (second(x) - randomise(adapted(pl.LoRA(), vit=vit))(x)).abs().max() <= 1e-5
    with pytest.raises(ValueError, match="13 channels"):
        pl.adapt(pl.merge(adapted(pl.LoRA(), input=ZERO)), pl.LoRA(), SENTINEL2)


# --- what cannot be merged ---


@pytest.mark.parametrize(
    ("method", "input", "says"),
    [
        (pl.LoRA(), pl.EMB(), ["EMB()", "adds x_A", "plain ViT"]),
        (pl.Houlsby(positions=("mlp",), layers=(1,)), None, ["Houlsby", "blocks.1.ls2", "LoRA", "SLR", "BitFit"]),
        (pl.VPT(deep=False), None, ["VPT", "blocks.0 is a PromptedBlock"]),
        (pl.EarthAdapter(), None, ["EarthAdapter", "blocks.0 is a FrequencyAdaptedBlock"]),
    ],
    ids=str,
)
def test_what_a_plain_vit_cannot_do_is_refused(method, input, says, x):
    model = randomise(adapted(method, input=input))
    before = model(x)
    with pytest.raises(ValueError) as error:
        pl.merge(model)
    assert all(text in str(error.value) for text in says), str(error.value)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("name", pl.METHODS)
def test_every_method_is_merged_or_refused(name, x):
    """On RGB: a plain ViT, or an error that names the block that is not plain."""
    model = randomise(adapted(pl.METHODS[name]()))
    try:
        assert_merges(model, x)
    except ValueError as error:
        assert "plain ViT" in str(error)
