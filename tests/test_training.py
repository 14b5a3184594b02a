"""fit: which weights come back, their scores, and what each option does."""

import json
import math

import lightning
import peft
import pytest
import torch
from helpers import tiny_vit
from toy_data import Toy, classification, same, segmentation, toy_data, tuned

import peftlib as pl
from peftlib.data.datamodule import EarthData
from peftlib.training.fit import fit, read_checkpoint, restore


class Unlabelled(Toy):
    def __getitem__(self, i: int) -> dict:
        return super().__getitem__(i) | {"mask": torch.full((32, 32), -1)}


class Watch(lightning.Callback):
    """What happened: steps with their learning rates and losses, the scores of each validation, weights after each."""

    def __init__(self):
        self.rates, self.losses, self.scores, self.weights = [], [], [], []

    def on_train_batch_end(self, trainer, task, outputs, *_) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_before_optimizer_step(self, trainer, task, optimizer) -> None:
        self.rates.append([group["lr"] for group in optimizer.param_groups])

    def on_validation_end(self, trainer, task) -> None:
        self.scores.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.weights.append(tuned(task))


def run(folder, task=None, data=None, steps=6, **options):
    """Train on the CPU, two steps an epoch; the task, its metrics and what was seen."""
    task, watch = task or classification(lr=1e-2, head_lr=1e-2), Watch()
    metrics = fit(task, data or toy_data(), folder, steps, accelerator="cpu", callbacks=[watch], **options)
    return task, metrics, watch


# --- what comes out ---


def test_training_learns_what_only_near_infrared_shows(tmp_path):
    data = EarthData(Toy(24), Toy(6, seed=1), Toy(6, seed=2), batch_size=8)
    spectral = classification(pl.Deflect(), input_lr=1e-2, lr=1e-2, head_lr=1e-2)
    _, metrics, watch = run(tmp_path, spectral, data, steps=36)
    assert metrics["test"]["accuracy"] > 0.8 and watch.losses[-1] < 0.5 * watch.losses[0]


def test_without_a_log_it_validates_once_and_ends_in_the_midst_of_an_epoch(tmp_path):
    task, metrics, watch = run(tmp_path, steps=5, log=False)
    assert len(watch.losses) == 5 and len(watch.scores) == 1
    assert same(tuned(task), watch.weights[0]) and not task.training
    data = toy_data().test
    logits = task(torch.stack([sample["image"] for sample in data])).detach()
    labels = torch.tensor([sample["label"] for sample in data])
    assert metrics["test"]["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert json.loads((tmp_path / "results.json").read_text())["metrics"] == metrics


def test_segmentation_with_a_decoder_of_several_blocks(tmp_path):
    _, metrics, watch = run(tmp_path, segmentation(pl.VPT(tokens=3, deep=False), decoder="unet"), steps=4)
    assert {"miou", "iou_low", "iou_high", "loss"} <= metrics["test"].keys()
    assert len(watch.losses) == 4 and all(math.isfinite(loss) for loss in watch.losses)


def test_it_is_quiet_where_asked(tmp_path, capfd):
    run(tmp_path / "quiet", steps=1, log=False)
    assert capfd.readouterr() == ("", "")
    run(tmp_path / "bar", steps=1, progress=True)
    assert "Epoch 0" in capfd.readouterr().out


# --- checkpoints ---


def test_checkpoints_hold_what_is_tuned_and_no_backbone(tmp_path):
    task, _, _ = run(tmp_path, classification(pl.LoRA(rank=2)), steps=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "metrics.csv", "results.json"]
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert set(state["state_dict"]) == set(tuned(task)) and "model.vit.blocks.0.mlp.fc1.weight" not in tuned(task)
    moments = state["optimizer_states"][0]["state"].values()
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    assert sum(m["exp_avg"].numel() for m in moments) == trained


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    run(tmp_path, steps=1)
    restore(classification(seed=7), tmp_path / "last.ckpt")
    for other in (classification(pl.LoRA(rank=3)), classification(pl.BitFit()), segmentation()):
        with pytest.raises(ValueError, match="of another model"):
            restore(other, tmp_path / "last.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="no checkpoint of peftlib"):
        read_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "none.ckpt")


# --- options ---


def test_rates_of_input_method_and_head_follow_the_schedule(tmp_path):
    """Six steps, a third of them rising."""
    task = classification(pl.Deflect(), input_lr=0.9, lr=0.3, head_lr=0.06, warmup=1 / 3)
    _, _, watch = run(tmp_path, task)
    share = [1 / 3, 2 / 3, *(0.5 + 0.5 * math.cos(math.pi * k / 4) for k in range(4))]
    expected = [f * r for f in share for r in (0.9, 0.3, 0.06)]
    assert [r for rates in watch.rates for r in rates] == pytest.approx(expected)


def test_gathered_gradients_are_those_of_the_large_batch(tmp_path):
    """Two batches of two make the step that one of four makes; each epoch has two steps, and so has the schedule."""
    large, _, one = run(tmp_path / "a", classification(augment=False))
    small, _, two = run(tmp_path / "b", classification(augment=False), toy_data(batch_size=2), accumulate=2)
    assert len(two.losses) == 12 and two.rates == one.rates and len(one.rates) == 6
    for name, tensor in tuned(large).items():
        torch.testing.assert_close(tuned(small)[name], tensor, rtol=0, atol=1e-5)


VARIANTS = {
    "seed": (dict(), dict(seed=1)),
    "order": (dict(), dict(data=lambda: toy_data(seed=1))),
    "batch_size": (dict(), dict(data=lambda: toy_data(batch_size=2))),
    "accumulate": (dict(), dict(accumulate=2)),
    "steps": (dict(), dict(steps=3)),
    "lr": (dict(lr=2e-3), dict()),
    "head_lr": (dict(head_lr=2e-3), dict()),
    "weight_decay": (dict(weight_decay=0.5), dict()),
    "schedule": (dict(schedule="constant"), dict()),
    "warmup": (dict(warmup=0.5), dict()),
    "augment": (dict(augment=False), dict()),
    "clip": (dict(), dict(gradient_clip_val=1e-3)),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tuned(run(tmp_path_factory.mktemp("plain"), classification(), steps=4)[0])


@pytest.mark.parametrize("name", VARIANTS)
def test_every_option_changes_the_outcome(name, plain, tmp_path):
    recipe, options = VARIANTS[name]
    options = dict(steps=4) | options
    data = options.pop("data", toy_data)()
    assert not same(tuned(run(tmp_path, classification(**recipe), data, **options)[0]), plain)


def test_impossible_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"accumulate=0, save_every=0.*at least 1"):
        run(tmp_path, accumulate=0, save_every=0)


@pytest.mark.parametrize("method", [pl.LoRA(), pl.HFPeft(peft.LoraConfig(r=2))], ids=lambda method: method.name)
def test_what_is_tuned_without_effect_is_named(method, tmp_path):
    """timm's own trap: without ``qkv_bias_separate``, EvaAttention reads the weight of qkv past what wraps it."""
    task = classification(method, vit=tiny_vit(name="vit_small_patch16_dinov3_qkvb"))
    run(tmp_path / "as adapted", task, steps=1)
    attn = task.model.vit.blocks[1].attn
    attn.qkv_bias_separate = method.name == "lora"
    attn.qkv.forward = getattr(attn.qkv, "linear", attn.qkv).forward
    with pytest.raises(ValueError, match=r"without effect.*no gradient to vit\.blocks\.1\.attn\.qkv\..*\(2 in all\)"):
        run(tmp_path, task)


def test_validation_with_nothing_to_score_is_refused(tmp_path):
    nothing = EarthData(Toy(4), Unlabelled(4))
    with pytest.raises(ValueError, match=r"miou is not a number in validation; did the training diverge"):
        run(tmp_path, segmentation(), nothing, steps=1)


def test_a_folder_holds_one_run(tmp_path):
    run(tmp_path, steps=1)
    with pytest.raises(ValueError, match=r"other settings \(steps: 1 there, 2 here\); choose another folder"):
        run(tmp_path, steps=2)
    with pytest.raises(ValueError, match=r"gradient_clip_val: None there, 0.1 here"):
        run(tmp_path, steps=1, gradient_clip_val=0.1)
    (tmp_path / "results.json").unlink()
    with pytest.raises(ValueError, match=r"method: 'LoRA\(\)' there, 'LoRA\(rank=2\)' here"):
        run(tmp_path, classification(pl.LoRA(rank=2)), steps=1)
