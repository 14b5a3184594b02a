"""What adapt does with the ViT that it is given, and with arguments that make no sense."""

import pytest
import torch
from helpers import SAVANNA, SENTINEL2, adapted, images, pretrained_tokens, randomise, tiny_vit
from timm.models import create_model
from torch import nn

import peftlib as pl

DEFAULTS = [pytest.param(config(), id=name) for name, config in pl.METHODS.items()]
# --- the start ---


@pytest.mark.parametrize("method", [p for p in DEFAULTS if p.values[0].starts_as_pretrained])
@pytest.mark.parametrize(
    "options",
    [
        dict(class_token=False, reg_tokens=0, global_pool="avg"),
        dict(reg_tokens=4, no_embed_class=True),
        dict(pre_norm=True, init_values=None),
        dict(dynamic_img_size=True),
        dict(pos_embed="none"),
        dict(qkv_bias=False, num_classes=5),
    ],
    ids=lambda options: ",".join(options),
)
def test_other_forms_of_vit_start_as_themselves_too(method, options, x):
    vit = tiny_vit(**options)
    assert (pl.adapt(vit, method, SENTINEL2)(x) - pretrained_tokens(vit, x)).abs().max() <= 1e-6


@pytest.mark.parametrize("method", DEFAULTS)
def test_images_that_are_not_square_and_batches_of_one(method, vit):
    x = images(SAVANNA, batch=1, size=(40, 24))
    model = pl.adapt(vit, method, SAVANNA, image_size=(40, 24))
    reference = tiny_vit(dynamic_img_size=True)  # timm's own resampling of the position grid
    assert model.grid_size == (5, 3) and model(x).shape == (1, 2 + 15, 32)
    if not method.starts_as_pretrained:
        return
    torch.testing.assert_close(model(x), pretrained_tokens(reference, x, rgb=(2, 1, 0)), rtol=0, atol=1e-5)


def test_other_inflations_start_elsewhere(vit, x):
    for how in ("repeat", "mean", "random", "nearest"):
        got = pl.adapt(vit, pl.Frozen(new_bands=how), SENTINEL2)(x)
        assert (got - pretrained_tokens(vit, x)).abs().max() > 1e-2, how


# --- the given ViT ---


@pytest.mark.parametrize("method", DEFAULTS)
def test_the_given_vit_is_untouched(method, vit, x):
    picture = torch.randn(1, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    trainable = [p.requires_grad for p in vit.parameters()]
    tokens = vit.forward_features(picture)
    model = randomise(pl.adapt(vit, method, SENTINEL2, image_size=64))
    model.train()
    assert vit.state_dict().keys() == before.keys()
    assert all(torch.equal(vit.state_dict()[name], tensor) for name, tensor in before.items())
    assert [p.requires_grad for p in vit.parameters()] == trainable and not vit.training
    assert torch.equal(vit.forward_features(picture), tokens)
    pl.adapt(vit, method, SENTINEL2)(x)  # and it can be adapted again


@pytest.mark.parametrize("method", DEFAULTS)
def test_inplace_is_the_same_model_without_a_copy(method, x):
    vit = tiny_vit()
    model = adapted(method, vit=vit, inplace=True)
    assert model.vit is vit
    assert torch.equal(randomise(model)(x), randomise(adapted(method))(x))


def test_an_adapted_vit_is_not_adapted_again(vit):
    model = pl.adapt(vit, pl.LoRA(), SENTINEL2, inplace=True)
    for used in (vit, model.vit):
        with pytest.raises(ValueError, match="already adapted"):
            pl.adapt(used, pl.LoRA(), SENTINEL2)


@pytest.mark.parametrize("wrong", [dict(layers=(7,)), dict(cells=3), dict(indices=("NOPE",))])
def test_a_refused_inplace_adapt_leaves_the_vit_whole(wrong, vit, x):
    tokens = pretrained_tokens(vit, x)
    trainable = [p.requires_grad for p in vit.parameters()]
    with pytest.raises(ValueError):
        pl.adapt(vit, pl.Deflect(**wrong), SENTINEL2, image_size=64, inplace=True)
    assert tuple(vit.patch_embed.img_size) == (32, 32)
    assert [p.requires_grad for p in vit.parameters()] == trainable
    assert torch.equal(pretrained_tokens(vit, x), tokens)


# --- training ---


@pytest.mark.parametrize("options", [dict(num_classes=10), dict(global_pool="avg"), dict(global_pool="map")])
def test_full_fine_tuning_leaves_alone_what_tokens_do_not_pass(options):
    """Classifier head, norm and pooling after the tokens: DDP refuses parameters that never get a gradient."""
    model = adapted(pl.Full(), ("B04", "B03", "B02"), vit=tiny_vit(**options))
    model(images(("B04", "B03", "B02"))).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert pl.count_parameters(model)["percent"] == 100.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", DEFAULTS)
def test_the_whole_model_moves_to_another_type(method, dtype, x):
    model = randomise(adapted(method))
    expected = model(x)
    got = model.to(dtype)(x.to(dtype))
    assert got.dtype == dtype
    tolerance = 0.5 if dtype == torch.bfloat16 else 1e-3
    assert (got.float() - expected).abs().max() < tolerance


# --- counting ---


def test_counts_by_hand():
    counts = pl.count_parameters(adapted(pl.Deflect(rank=3, layers=(0, 2)), SAVANNA))
    s = 1 + 2  # near infrared; NDVI and NDWI
    encoder = (s * 32 + 32) + (32 * 32 + 32) + 2 * 64 + (64 * 64 + 64) + (64 * 32 + 32)
    assert counts["tuned_input"] == encoder
    assert counts["tuned"] == encoder + 2 * 4 * 3 * 32  # 4 r d a block
    assert counts["encoder"] == sum(p.numel() for p in tiny_vit().parameters())
    assert counts["percent"] == pytest.approx(100 * counts["tuned"] / counts["encoder"])


# --- wrong calls ---


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (dict(method="deflect"), ["'deflect'", "Deflect()", "LoRA()"]),
        (dict(method=pl.Deflect), ["Deflect", "LoRA()"]),
        (dict(sensor="sentinel3"), ["sentinel3", "landsat8"]),
        (dict(image_size=30), ["(30, 30)", "(8, 8)", "(32, 32)"]),
        (dict(image_size=(32, 36)), ["(32, 36)", "(8, 8)"]),
        (dict(image_size=0), ["(0, 0)"]),
        (dict(image_size=32.5), ["32.5"]),
        (dict(image_size=(32, 32, 32)), ["(32, 32, 32)"]),
        (dict(vit=nn.Linear(2, 2)), ["Linear", "VisionTransformer"]),
        (dict(vit=create_model("resnet10t", num_classes=0)), ["ResNet", "VisionTransformer"]),
        (dict(vit=tiny_vit(patch_drop_rate=0.5)), ["patch_drop_rate"]),
    ],
)
def test_wrong_arguments_are_named(call, says, vit):
    call = dict(vit=vit, method=pl.Deflect(), bands=SENTINEL2) | call
    with pytest.raises(ValueError) as error:
        pl.adapt(**call)
    assert all(text in str(error.value) for text in says), str(error.value)
