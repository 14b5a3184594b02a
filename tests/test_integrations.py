"""Adapted ViTs as feature backbones, torchgeo's trainers.

What needs TerraTorch itself is in ``tests/with_terratorch``.
"""

import importlib.util

import lightning
import pytest
import torch
from helpers import adapted, assert_only_tuned_moved, images, snapshot, tiny_vit
from torch.utils.data import DataLoader

import peftlib as pl
from peftlib.integrations import LayerFeatures


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
            LayerFeatures(adapted(pl.Frozen()), indices)(x)
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
