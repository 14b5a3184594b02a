"""Backbones: what loads, what it is called, and position grids of any size."""

import pytest
import torch
import torch.nn.functional as F
from helpers import SENTINEL2, images, tiny_vit
from safetensors.torch import save_file
from timm.models import create_model
from timm.models.vision_transformer import VisionTransformer

import peftlib as pl
from peftlib.backbones.loading import BackboneSpec, backbone_hash, resize_, spec_of

TIMM = "vit_tiny_patch16_224"


def scalemae(res: float = 1.0, img_size: int = 32) -> VisionTransformer:
    models = pytest.importorskip("torchgeo.models")
    torch.manual_seed(0)
    options = dict(img_size=img_size, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    return models.ScaleMAE(res=res, **options).eval()


# --- by name ---


def test_a_timm_vit_by_name():
    vit = pl.load_backbone(TIMM, weights="random", image_size=(32, 64))
    assert vit.forward_features(torch.zeros(1, 3, 32, 64)).shape == (1, 1 + 8, 192)
    assert not vit.training and isinstance(vit.spec, BackboneSpec)
    assert vit.spec.name == TIMM and vit.spec.weights == "random" and vit.spec.res is None
    assert vit.spec.mean == (0.5, 0.5, 0.5)  # timm's ViTs of this family are not normalised as ImageNet
    assert isinstance(vit.head, torch.nn.Identity)
    model = pl.adapt(vit, pl.Deflect(), SENTINEL2)
    x = images(size=(32, 64))
    shown = ((x[:, [3, 2, 1]] / 0.3).clamp(0, 1) - 0.5) / 0.5
    torch.testing.assert_close(model(x), vit.forward_features(shown), rtol=0, atol=1e-6)


def test_dinov2_by_name_without_weights():
    vit, other = (pl.load_backbone("dinov2_small", weights="random", image_size=28) for _ in range(2))
    assert vit.patch_embed.grid_size == (2, 2) and vit.num_prefix_tokens == 1 and vit.embed_dim == 384
    assert "dinov2_small" in pl.BACKBONES and "MIT" in vit.spec.licence
    assert backbone_hash(vit) != backbone_hash(other)
    before = backbone_hash(vit)  # of weights, not of size or head
    resize_(vit, 56)
    vit.reset_classifier(5)
    assert backbone_hash(vit) == before
    assert spec_of(tiny_vit()).weights == "given"  # a user's own
    assert spec_of(create_model(TIMM, num_classes=0)).mean == (0.5, 0.5, 0.5)


def test_dinov3_names_its_licence_its_normalisation_and_the_way_to_gated_weights(monkeypatch):
    name = "vit_large_patch16_dinov3.sat493m"

    def small(name, pretrained=False, **options):
        if pretrained:
            raise ConnectionError("401 gated")
        return create_model(name, depth=1, embed_dim=64, num_heads=2, **options)

    monkeypatch.setattr("peftlib.backbones.loading.timm.create_model", small)
    vit = pl.load_backbone(name, weights="random", image_size=(32, 64))
    assert vit.forward_features(torch.zeros(1, 3, 32, 64)).shape == (1, 5 + 8, 64)
    assert (vit.spec.licence, vit.spec.mean) == ("dinov3-license", (0.430, 0.411, 0.296))
    says = rf"licence dinov3-license.*huggingface.co/timm/{name}.*401 gated.*hf auth login.*'random'.*weights=PATH"
    with pytest.raises(OSError, match=says):
        pl.load_backbone(name)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (dict(name="dinov9"), ["'dinov9'", "dinov2_small", "scalemae_large", "timm"]),
        (dict(name="resnet10t"), ["resnet10t", "ResNet", "VisionTransformer"]),
        (dict(name="samvit_base_patch16", weights="default"), ["Eva, not samvit_base_patch16", "within windows"]),
        (dict(name="naflexvit_base_patch16_gap", weights="default"), ["a sequence with coordinates"]),
        (dict(name="hiera_tiny_224", weights="default"), ["pools its tokens"]),
        (dict(name="convnext_tiny", weights="default"), ["convolves"]),  # before anything is fetched
        (dict(name=TIMM, res=10.0), [TIMM, "10.0", "no effect"]),
        (dict(name=TIMM, image_size=30), ["(30, 30)", "(16, 16)", "(32, 32)"]),
        (dict(name=TIMM, image_size="big"), ["'big'"]),
    ],
)
def test_wrong_names_and_options_are_named(call, says):
    with pytest.raises(ValueError) as error:
        pl.load_backbone(**(dict(weights="random") | call))
    assert all(text in str(error.value) for text in says), str(error.value)


# --- weights from a path ---


@pytest.fixture
def saved():
    """A timm ViT's own state dict."""
    torch.manual_seed(3)
    return create_model(TIMM, num_classes=0).state_dict()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_from_a_path(suffix, saved, tmp_path):
    path = tmp_path / f"mine{suffix}"
    save_file(saved, path) if suffix == ".safetensors" else torch.save(saved, path)
    for given in (path, str(path)):
        vit = pl.load_backbone(TIMM, weights=given)
        assert all(torch.equal(vit.state_dict()[name], tensor) for name, tensor in saved.items())
        assert vit.spec.weights == str(path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt.*'default', 'random'"):
        pl.load_backbone(TIMM, weights=tmp_path / "nothing.pt")


def test_weights_that_do_not_fit_list_what_is_wrong(saved, tmp_path):
    path = tmp_path / "mine.safetensors"
    saved["stem.weight"] = saved.pop("cls_token")
    saved["norm.bias"] = torch.zeros(7)
    save_file(saved, path)
    with pytest.raises(ValueError) as error:
        pl.load_backbone(TIMM, weights=path)
    for text in ("mine.safetensors", "Missing key(s)", "cls_token", "stem.weight", "norm.bias: ", "[7]", "[192]"):
        assert text in str(error.value)


# --- positions ---


@pytest.mark.parametrize(("no_embed_class", "antialias"), [(False, True), (True, False)])
def test_position_grids_are_resampled(no_embed_class, antialias):
    vit = tiny_vit(no_embed_class=no_embed_class)
    vit.spec = BackboneSpec("tiny", antialias=antialias)
    old, own = vit.pos_embed.detach().clone(), vit.pos_embed.requires_grad_(False)
    resize_(vit, 32)
    assert vit.pos_embed is own  # the same size is no change
    resize_(vit, 8)
    resize_(vit, (16, 48))  # always from the pretrained grid
    assert not vit.pos_embed.requires_grad
    prefix, grid = 0 if no_embed_class else 2, (2, 6)
    assert torch.equal(vit.pos_embed[:, :prefix], old[:, :prefix])
    picture = old[:, prefix:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    expected = F.interpolate(picture, grid, mode="bicubic", antialias=antialias).flatten(2).transpose(1, 2)
    torch.testing.assert_close(vit.pos_embed[:, prefix:], expected)
    assert vit.forward_features(torch.zeros(1, 3, 16, 48)).shape == (1, 2 + 12, 32)


def test_resizing_starts_from_positions_that_were_trained_since():
    trained, fresh = tiny_vit(), tiny_vit()
    for v in (trained, fresh):
        resize_(v, 64)
    with torch.no_grad():
        trained.pos_embed.add_(1.0)
    resize_(trained, 32)
    resize_(fresh, 32)
    assert (trained.pos_embed - fresh.pos_embed).abs().min() > 0.5


# --- Scale-MAE ---


def test_scalemae_reads_the_ground_sampling_distance():
    near, far = scalemae(1.0), scalemae(10.0)
    far.load_state_dict(near.state_dict())
    picture = torch.randn(1, 3, 32, 32)
    assert not torch.allclose(near.forward_features(picture), far.forward_features(picture), atol=1e-3)
    x = images()
    models = [pl.adapt(vit, pl.Deflect(), SENTINEL2) for vit in (near, far)]
    assert not torch.allclose(models[0](x), models[1](x), atol=1e-3)
    model = pl.adapt(near, pl.Full(), SENTINEL2)  # DDP refuses a parameter without gradient, as a stored grid would be
    model(x).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_scalemae_at_another_size_takes_square_images_alone():
    model = pl.adapt(scalemae(), pl.Deflect(), SENTINEL2, image_size=48)
    fresh = scalemae(img_size=48)
    state = scalemae().state_dict() | {"pos_embed": fresh.pos_embed}
    fresh.load_state_dict(state)
    x = images(size=(48, 48))
    same = pl.adapt(fresh, pl.Deflect(), SENTINEL2)
    torch.testing.assert_close(model(x), same(x), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"square.*\(32, 64\)"):
        pl.adapt(scalemae(), pl.Deflect(), SENTINEL2, image_size=(32, 64))
