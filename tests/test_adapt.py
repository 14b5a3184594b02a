"""What adapt does with the ViT that it is given, and with arguments that make no sense."""

import pytest
import torch
from helpers import COLOURS, SAVANNA, SENTINEL2, adapted, images, pretrained_tokens, randomise, tiny_vit
from timm.models import create_model
from torch import nn

import peftlib as pl
from peftlib.deflect.time_series import SeriesEMB

EVERY = pytest.mark.parametrize("method", [config() for config in pl.METHODS.values()], ids=pl.METHODS)


@pytest.mark.parametrize("method", [pl.Deflect(), pl.LoRA(), pl.Houlsby()], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        dict(class_token=False, reg_tokens=0, global_pool="avg"),
        dict(reg_tokens=4, no_embed_class=True),
        dict(pre_norm=True, init_values=None),
        dict(dynamic_img_size=True),
        dict(pos_embed="none"),
        dict(qkv_bias=False, num_classes=5),
        dict(qk_norm=True),
        dict(attn_drop_rate=0.5, proj_drop_rate=0.5, drop_path_rate=0.5),  # of a backbone in eval mode
    ],
    ids=lambda options: ",".join(options),
)
def test_other_forms_of_vit_start_as_themselves_too(method, options, x):
    vit = tiny_vit(**options)
    assert (pl.adapt(vit, method, SENTINEL2)(x) - pretrained_tokens(vit, x)).abs().max() <= 1e-6


def test_decoders_get_the_tokens_of_any_block(x):
    """With the final norm on each; a shallow VPT's prompts, which travel with the tokens, are left out."""
    for method in (pl.Deflect(), pl.VPT(tokens=3, deep=False)):
        model = randomise(adapted(method))
        first, last = model.intermediate_tokens(x, [0, 2])
        torch.testing.assert_close(last, model(x))
        z, z_A = model.embed(x)
        z, _ = model.run_block(model.vit.blocks[0], z, z_A)
        torch.testing.assert_close(first, model.vit.norm(torch.cat([z[:, :2], z[:, -16:]], dim=1)))
    for wrong in ([], [3], [-1]):
        with pytest.raises(ValueError, match=r"blocks=.*0 to 2"):
            model.intermediate_tokens(x, wrong)


# --- the given ViT ---


@EVERY
def test_the_given_vit_is_untouched(method, vit, x):
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    trainable = [p.requires_grad for p in vit.parameters()]
    tokens = pretrained_tokens(vit, x)
    randomise(pl.adapt(vit, method, SENTINEL2, image_size=64)).train()
    assert vit.state_dict().keys() == before.keys()
    assert all(torch.equal(vit.state_dict()[name], tensor) for name, tensor in before.items())
    assert [p.requires_grad for p in vit.parameters()] == trainable and not vit.training
    assert torch.equal(pretrained_tokens(vit, x), tokens)


@pytest.mark.parametrize("options", [dict(num_classes=10), dict(global_pool="avg"), dict(global_pool="map")], ids=str)
def test_full_fine_tuning_leaves_alone_what_tokens_do_not_pass(options):
    """Classifier head, norm and pooling after the tokens: DDP refuses parameters that never get a gradient."""
    model = adapted(pl.Full(), COLOURS, vit=tiny_vit(**options))
    model(images(COLOURS)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert pl.count_parameters(model)["percent"] == 100.0


# --- wrong calls ---


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (dict(method="deflect"), ["'deflect'", "Deflect()", "LoRA()"]),
        (dict(method=pl.LoRA(), bands=COLOURS, input=pl.EMB()), ["EMB", "beyond RGB", "B04", "pl.RGB()"]),
        (dict(method=pl.LoRA(), bands=COLOURS, input=pl.Inflated()), ["Inflated", "beyond RGB", "B04", "pl.RGB()"]),
        (dict(method=pl.Deflect(), input=pl.RGB()), ["Deflect()", "RGB()", "EMB()", "x_A"]),
        (dict(method=pl.EMB()), ["method=EMB", "input", "Deflect()", "LoRA()"]),
        (dict(method=pl.LoRA(), input=pl.LoRA()), ["input=LoRA", "method", "EMB()", "RGB()"]),
        (dict(method=pl.LoRA(), input="emb"), ["input='emb'", "EMB()", "RGB()"]),
        (dict(method=pl.LoRA(), input=SeriesEMB()), ["SeriesEMB", "series_bands"]),
        (dict(method=pl.LoRA(), input=pl.EMB(cells=3)), ["cells=3", "(8, 8)", "[1, 2, 4, 8]"]),
        (dict(method=pl.LoRA(), input=pl.EMB(indices=("NDVX",))), ["NDVX", "NDVI"]),
        (dict(method=pl.LoRA(), input=pl.EMB(indices=("NBR",)), bands=SAVANNA), ["NBR", "S2"]),
        (dict(rgb_white=0), ["rgb_white=0", "positive"]),
        (dict(rgb_white=float("nan")), ["rgb_white=nan", "positive"]),
        (dict(nodata="ignore"), ["nodata='ignore'", "error", "zero"]),
        (dict(method=pl.Deflect), ["Deflect", "LoRA()"]),
        (dict(sensor="sentinel3"), ["sentinel3", "landsat8"]),
        (dict(image_size=30), ["(30, 30)", "(8, 8)", "(32, 32)"]),
        (dict(image_size=0), ["(0, 0)"]),
        (dict(image_size=32.5), ["32.5"]),
        (dict(image_size=(32, 32, 32)), ["(32, 32, 32)"]),
        (dict(vit=nn.Linear(2, 2)), ["Linear", "VisionTransformer"]),
        (dict(vit=create_model("resnet10t", num_classes=0)), ["ResNet", "VisionTransformer"]),
        (dict(vit=create_model("vit_tiny_r_s16_p8_224", num_classes=0)), ["HybridEmbed"]),
        (dict(vit=tiny_vit(patch_drop_rate=0.5)), ["patch_drop_rate"]),
        (dict(vit=tiny_vit(in_chans=4)), ["4 channels"]),
    ],
)
def test_wrong_arguments_are_named(call, says, vit):
    call = dict(vit=vit, method=pl.Deflect(), bands=SENTINEL2) | call
    with pytest.raises(ValueError) as error:
        pl.adapt(**call)
    assert all(text in str(error.value) for text in says), str(error.value)
