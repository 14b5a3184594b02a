"""A frozen backbone reads each image once, and what is trained on its features is what would be trained without."""

import pytest
import torch
from toy_data import classification, same, segmentation, toy_data, tuned

import peftlib as pl
from peftlib.training import cached_features as features
from peftlib.training import fit as training
from peftlib.training.fit import fit

FROZEN = pl.Frozen()
TASKS = {
    "classification": lambda **options: classification(FROZEN, **options),
    "linear": lambda **options: segmentation(FROZEN, **options),
    "unet": lambda **options: segmentation(FROZEN, decoder="unet", **options),
}


@pytest.fixture
def reads(monkeypatch):
    """How many images each forward pass of the backbone has read."""
    counts, really = [], pl.adapt.__globals__["AdaptedViT"].embed

    def counted(self, x, metadata=None):
        counts.append(len(x))
        return really(self, x, metadata)

    monkeypatch.setattr(pl.adapt.__globals__["AdaptedViT"], "embed", counted)
    return counts


@pytest.mark.parametrize("kind", ["classification", "linear", "unet"])
def test_features_change_nothing_but_the_time(kind, tmp_path, reads, monkeypatch):
    results, weights = {}, {}
    for name in ("kept", "anew"):
        if name == "anew":
            monkeypatch.setattr(training, "can_cache", lambda task, data: False)
        task = TASKS[kind](augment=False, lr=1e-2, head_lr=1e-2)
        reads.clear()
        results[name] = fit(task, toy_data(), tmp_path / name, 8, accelerator="cpu")
        weights[name] = tuned(task)
        if name == "kept":
            assert sum(reads) == 8 + 5 + 4 + 1  # train, val, test, and one to see how large features are
    for part, metrics in results["anew"].items():
        assert results["kept"][part] == pytest.approx(metrics, abs=1e-4)
    for tensor, other in zip(weights["kept"].values(), weights["anew"].values(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-3, atol=1e-5)


def test_a_stopped_run_resumes_to_the_same_bits(tmp_path):
    def task():
        return classification(FROZEN, augment=False, head_lr=1e-2)

    fit(whole := task(), toy_data(), tmp_path / "whole", 8, accelerator="cpu", save_every=2)

    class Stop(Exception):
        pass

    class Stopper(pytest.importorskip("lightning").Callback):
        def on_train_epoch_start(self, trainer, _):
            if trainer.current_epoch == 2:
                raise Stop

    with pytest.raises(Stop):
        fit(task(), toy_data(), tmp_path / "parts", 8, accelerator="cpu", save_every=2, callbacks=[Stopper()])
    fit(parts := task(), toy_data(), tmp_path / "parts", 8, accelerator="cpu", save_every=2)
    assert same(tuned(whole), tuned(parts))


@pytest.mark.parametrize(
    ("method", "options"),
    [(pl.LoRA(), {"augment": False}), (FROZEN, {"augment": True})],
)
def test_what_may_change_is_read_anew(method, options):
    assert not features.can_cache(classification(method, **options), toy_data())


def test_dropout_is_drawn_anew():
    task = classification(FROZEN, augment=False)
    assert features.can_cache(task, toy_data())
    task.model.vit.blocks[0].mlp.drop1.p = 0.1
    assert not features.can_cache(task, toy_data())


def test_features_that_do_not_fit_into_memory_are_not_kept(monkeypatch):
    task = segmentation(FROZEN, augment=False)
    bytes_each = task.forward_features(toy_data().train[0]["image"][None]).nbytes
    monkeypatch.setattr(features, "MOST", 17 * bytes_each)
    assert features.can_cache(task, toy_data())
    monkeypatch.setattr(features, "MOST", 17 * bytes_each - 1)
    assert not features.can_cache(task, toy_data())
