"""What fit tells of a training, and what it warns of; the search of rates."""

import json
import math
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
from toy_data import Toy, classification, same, segmentation, toy_data, tuned

import peftlib as pl
from peftlib.training.fit import History, fit, quiet_trainer, restore
from peftlib.training.search import search_lr


def run(folder, task=None, steps=5, **options):
    task = task or segmentation()
    return task, fit(task, toy_data(), folder, steps, accelerator="cpu", **options)


# --- lines and metrics.csv ---


def test_a_line_an_epoch_and_the_history_say_what_validation_says(tmp_path, capsys):
    _, metrics = run(tmp_path)
    lines, rows = capsys.readouterr().out.splitlines(), pd.read_csv(tmp_path / "metrics.csv")
    assert rows["epoch"].tolist() == [1, 2, 3] and rows["step"].tolist() == [2, 4, 5]
    last = rows.iloc[-1]
    for name, value in metrics["val"].items():  # the last validation is that of the weights that come back
        assert last[f"val_{name}"] == pytest.approx(value)
    assert len(lines) == 3 and lines[1].startswith("epoch 2, step 4 of 5: train_loss ") and " left" in lines[1]
    assert all(f" {name} {last[name]:.4g} " in lines[2] for name in ("train_loss", "val_loss", "val_miou"))


def test_the_log_changes_no_number(tmp_path):
    told, metrics = run(tmp_path / "told")
    quiet, expected = run(tmp_path / "quiet", log=False)
    assert same(tuned(told), tuned(quiet)) and metrics == expected
    assert not (tmp_path / "quiet" / "metrics.csv").exists()


def test_the_mean_loss_is_that_of_the_batches_also_where_gradients_are_gathered(tmp_path):
    task = segmentation(augment=False, lr=0.0, head_lr=0.0)
    run(tmp_path, task, steps=1, accumulate=2)
    batch = next(iter(toy_data(train=8, batch_size=8).train_dataloader()))
    expected = task.loss(task(batch["image"]), batch["mask"]).item()  # as many known pixels in each batch
    assert pd.read_csv(tmp_path / "metrics.csv")["train_loss"].item() == pytest.approx(expected, rel=1e-5)


# --- warnings ---


def jumps(*losses: float) -> list[bool]:
    history = History(Path(), 9)
    return [history.jumps(loss) for loss in losses]


def test_what_a_jump_is():
    assert jumps(0.7, 0.15, 0.3, 3.2) == [False, False, False, True]
    assert jumps(0.7, 0.001, 0.02, 0.6) == 4 * [False]  # near zero, and below the first
    assert jumps(0.0, 0.7, 0.0, 0.6, math.nan) == 4 * [False] + [True]
    assert jumps(math.nan) == [True]


def test_a_training_that_diverges_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match=r"the loss jumps \(epoch 1\); try lower rates"):
        run(tmp_path, segmentation(pl.Full(), lr=30.0, head_lr=30.0), steps=6)


@pytest.mark.parametrize("make", [classification, segmentation])
def test_a_class_that_no_training_image_has_is_named(make, tmp_path):
    data, task = toy_data(), make()
    data.train = [s | {task.truth: torch.as_tensor(s[task.truth]).clamp(max=0)} for s in data.train]
    with pytest.warns(UserWarning, match=f"no training label in the first 2 steps: {', '.join(task.classes[1:])}$"):
        fit(task, data, tmp_path, 5, accelerator="cpu")


@pytest.mark.parametrize("make", [classification, segmentation])
def test_a_class_that_is_never_predicted_is_named(make, tmp_path):
    task = make(lr=1e-5, head_lr=1e-5)
    head = task.head if make is classification else task.decoder.linear
    with torch.no_grad():
        head.bias[1] -= 100
    with pytest.warns(UserWarning, match=f"never predicted, though in validation: {task.classes[1]}; class_weights"):
        run(tmp_path / "told", task, steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tmp_path / "quiet", make(), steps=1, log=False)


# --- weights of classes, modes ---


def test_weights_are_counted_before_the_first_step_and_come_back(tmp_path):
    task, _ = run(tmp_path, segmentation(class_weights="balanced"), steps=1)
    counts = torch.stack([sample["mask"] for sample in Toy(8)]).flatten()
    counts = torch.bincount(counts[counts >= 0])
    torch.testing.assert_close(task.class_weights, counts.sum() / (2 * counts))
    again = restore(segmentation(class_weights="balanced", seed=3), tmp_path / "last.ckpt")
    assert torch.equal(again.class_weights, task.class_weights)
    with pytest.raises(ValueError, match=r"other settings \(class_weights: 'balanced' there, None here"):
        run(tmp_path, segmentation(), steps=1)
    assert not same(tuned(run(tmp_path / "dice", segmentation(dice=0.5), steps=1)[0]), tuned(run(tmp_path / "n")[0]))


def test_a_task_trains_in_training_mode_with_any_trainer_and_comes_back_in_eval_mode(tmp_path):
    task, seen = classification(pl.VPT(dropout=0.1)), []
    step = task.training_step
    task.training_step = lambda *a: seen.append(all(m.training for m in task.modules())) or step(*a)
    quiet_trainer(accelerator="cpu", max_epochs=1).fit(task, toy_data())
    assert seen == [True, True]
    run(tmp_path, made := classification(), steps=1)
    assert not any(m.training for m in [*made.modules(), *restore(classification(), tmp_path / "last.ckpt").modules()])


# --- rates ---


def test_the_search_gives_a_task_the_rates_that_validate_best(tmp_path, capsys):
    task, data = segmentation(pl.Deflect(), lr=2e-3), toy_data()
    before, rates = tuned(task), pl.EMB.learning_rates
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = search_lr(task, data, tmp_path, steps=2, accelerator="cpu")
    runs = [json.loads(path.read_text()) for path in tmp_path.glob("*/results.json")]
    score = {(r["facts"]["input_lr"], r["facts"]["lr"]): r["metrics"]["val"]["miou"] for r in runs}
    assert all(r["metrics"].keys() == {"val"} for r in runs) and data.test is not None
    assert found["input_lr"] == max(rates, key=lambda rate: score[rate, 2e-3])
    assert found["lr"] == max(pl.Deflect.learning_rates, key=lambda rate: score[found["input_lr"], rate])
    assert (task.input_lr, task.lr) == (found["input_lr"], found["lr"]) and same(tuned(task), before)
    assert f"lr={found['lr']:g}: miou {score[found['input_lr'], found['lr']]:.4g}" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    frozen = segmentation(pl.Frozen())
    assert search_lr(frozen, data, tmp_path / "other", steps=1) == {} and frozen.lr == segmentation().lr


def test_a_best_rate_at_an_end_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr("peftlib.training.search.fit", lambda task, *_, **__: {"val": {"miou": task.lr}})
    with pytest.warns(UserWarning, match=r"the best lr=0.008 is an end of \(0.000125, .*; try beyond it"):
        assert search_lr(segmentation(), toy_data(), tmp_path) == {"lr": 8e-3}
