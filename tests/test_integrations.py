"""Adapted ViTs as feature backbones, methods in the blocks of multispectral ViTs, torchgeo's trainers.

What needs TerraTorch itself is in ``tests/with_terratorch``.
"""

import importlib.util

import lightning
import pytest
import torch
from helpers import adapted, images, randomise, tiny_vit
from torch import nn
from torch.utils.data import DataLoader

import peftlib as pl
from peftlib.integrations import BLOCK_METHODS, LayerFeatures, adapt_blocks


def snapshot(module: nn.Module) -> dict:
    return {name: (p.requires_grad, p.detach().clone()) for name, p in module.named_parameters()}


def assert_only_tuned_moved(module: nn.Module, before: dict) -> None:
    for name, parameter in module.named_parameters():
        tuned, start = before[name]
        assert parameter.requires_grad == tuned and torch.equal(parameter, start) != tuned, name


@pytest.mark.parametrize("method", [pl.VPT(), pl.Deflect()])
def test_features_are_tokens_of_each_block(method, x):
    model = adapted(method).eval()
    backbone = LayerFeatures(model, out_indices=[0, 2])
    features, tokens = backbone(x), model.intermediate_tokens(x, [0, 2])
    assert backbone.out_channels == [32, 32] and backbone.patch_size == (16, 16)  # padding to the model's size
    for z, own in zip(features, tokens, strict=True):  # class token and patches, without the register token between
        assert z.shape == (2, 17, 32) and torch.equal(z, torch.cat([own[:, :1], own[:, 2:]], dim=1))
    maps = backbone.prepare_features_for_image_model(features)
    assert maps[1].shape == (2, 32, 4, 4) and torch.equal(maps[1][:, :, 1, 2], tokens[1][:, 2 + 4 + 2])


def test_without_class_token_the_mean_stands_first_and_all_blocks_are_read_by_default(x):
    vit = tiny_vit(class_token=False, reg_tokens=0, global_pool="avg", patch_size=7, img_size=35)
    backbone = LayerFeatures(adapted(pl.Frozen(), vit=vit).eval())
    features = backbone(images(size=(35, 35)))
    assert len(features) == 3 and features[2].shape == (2, 26, 32) and backbone.patch_size is None
    torch.testing.assert_close(features[2][:, 0], features[2][:, 1:].mean(1))


def test_what_is_no_block_and_what_is_no_reflectance_is_refused(x):
    for indices in ([3], []):
        with pytest.raises(ValueError, match="blocks 0 to 2"):
            LayerFeatures(adapted(pl.Frozen()), indices)
    with pytest.raises(ValueError, match="expected reflectance"):  # standardised by a datamodule
        LayerFeatures(adapted(pl.Frozen()))((x - x.mean()) / x.std())


def test_an_adapter_that_a_framework_froze_is_an_error(x):
    backbone = LayerFeatures(adapted(pl.LoRA())).train()
    backbone(x)
    backbone.requires_grad_(False)
    with pytest.raises(ValueError, match="freeze_backbone"):
        backbone(x)
    backbone.eval()(x)
    LayerFeatures(adapted(pl.Frozen())).train()(x)  # frozen by choice


class Prithvi(nn.Module):
    """The shape of TerraTorch's: own patch embedding of 6 bands, timm's blocks, a forward that holds on to itself."""

    def __init__(self, **changes):
        super().__init__()
        vit = tiny_vit(in_chans=6)
        self.embed_dim, self.patch_embed, self.blocks, self.norm = 32, nn.Module(), vit.blocks, vit.norm
        self.patch_embed.proj = nn.Conv3d(6, 32, (1, 8, 8), (1, 8, 8))
        self.forward = lambda x: self.tokens(x)
        for name, value in changes.items():
            setattr(self, name, value)

    def tokens(self, x):
        z = self.patch_embed.proj(x[:, :, None]).flatten(2).transpose(1, 2)
        for block in self.blocks:
            z = block(z)
        return self.norm(z)


@pytest.mark.parametrize("config", BLOCK_METHODS.values(), ids=BLOCK_METHODS)
def test_block_methods_tune_a_multispectral_vit(config):
    x, vit = torch.randn(2, 6, 32, 32), Prithvi()
    with torch.no_grad():
        start = vit(x)
    assert adapt_blocks(vit, config()) is vit
    assert any(p.requires_grad for p in vit.parameters())
    assert not any(p.requires_grad for p in vit.patch_embed.parameters() if config is not pl.BitFit)
    torch.testing.assert_close(vit(x), start, rtol=1e-5, atol=1e-5)
    before = snapshot(randomise(vit))
    optimiser = torch.optim.AdamW(vit.parameters(), lr=1e-2)  # all of them, as TerraTorch gives
    vit(x).square().mean().backward()
    optimiser.step()
    assert_only_tuned_moved(vit, before)
    with torch.no_grad():
        if config in (pl.LoRA, pl.SLR):
            tuned = vit(x)
            torch.testing.assert_close(config().merge(vit)(x), tuned, rtol=1e-4, atol=1e-4)
            assert type(vit.blocks[0].attn.qkv) is nn.Linear


@pytest.mark.parametrize(
    ("vit", "method", "message"),
    [
        (Prithvi, pl.Deflect(), r"does more than change blocks; choose one of NormTuning\(\), .*LoRA\(\)"),
        (Prithvi, pl.EMB(), "choose one of"),
        (lambda: adapt_blocks(Prithvi(), pl.LoRA()), pl.SLR(), "already adapted"),
        (lambda: nn.Sequential(nn.MultiheadAttention(8, 2)), pl.LoRA(), "its attention is .*MultiheadAttention"),
        (lambda: Prithvi(blocks=nn.ModuleList([nn.Linear(2, 2)])), pl.LoRA(), "Prithvi needs `blocks` of timm's"),
        (lambda: Prithvi(vpt=True), pl.LoRA(), "new layers of its own"),
    ],
)
def test_what_does_not_fit_is_refused_untouched(vit, method, message):
    vit = vit()
    before = {name: p.requires_grad for name, p in vit.named_parameters()}
    with pytest.raises(ValueError, match=message):
        adapt_blocks(vit, method)
    assert {name: p.requires_grad for name, p in vit.named_parameters()} == before


@pytest.mark.skipif(importlib.util.find_spec("terratorch") is not None, reason="terratorch is here")
def test_without_terratorch_the_way_to_it_is_named():
    with pytest.raises(ImportError, match=r"pip install terratorch.*make test-terratorch"):
        import peftlib.integrations.terratorch  # noqa: F401


def test_torchgeos_trainers_train_the_adapter_alone():
    """They build their model in ``configure_models``, and that is where another one goes."""
    trainers = pytest.importorskip("torchgeo.trainers")
    from peftlib.training.fit import quiet_trainer
    from peftlib.training.tasks import Segmentation

    class Adapted(trainers.SemanticSegmentationTask):
        def configure_models(self):
            self.model = Segmentation(adapted(pl.Deflect()), self.hparams["num_classes"])

    lightning.seed_everything(0, verbose=False)
    task = Adapted(task="multiclass", num_classes=3, lr=1e-2).train()
    loader = DataLoader([{"image": images(seed=s)[0], "mask": torch.randint(3, (32, 32))} for s in range(4)], 2)
    before = snapshot(task)
    quiet_trainer(max_steps=4, accelerator="cpu").fit(task, loader, loader)  # its scheduler reads the validation loss
    assert_only_tuned_moved(task, before)
    frozen = [name for name, (tuned, _) in before.items() if not tuned]
    assert len(frozen) > 20 and all(name.startswith("model.model.vit.") for name in frozen)
