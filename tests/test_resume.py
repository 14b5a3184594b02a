"""fit, interrupted: killed, stopped, with a damaged checkpoint, finished; and in two processes."""

import json
import multiprocessing
import os
from pathlib import Path

import lightning
import pandas as pd
import pytest
import torch
from helpers import PATIENCE
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from toy_data import Toy, classification, same, segmentation, toy_data, tuned

import peftlib as pl
from peftlib.data.datamodule import EarthData
from peftlib.training.fit import fit

STEPS = 7  # two an epoch: the last epoch is half of one
ALL = [(step // 2, step % 2) for step in range(STEPS)]


class Steps(lightning.Callback):
    """Which (epoch, batch) were trained; ``at`` one of them, something happens."""

    def __init__(self, at=None, then=None):
        self.seen, self.at, self.then = [], at, then

    def on_train_batch_start(self, trainer, task, batch, index) -> None:
        if (trainer.current_epoch, index) == self.at:
            self.then()
        self.seen.append((trainer.current_epoch, index))


def task():
    """All that draws at random in training, and a schedule that knows its step: dropout, augmentation, cosine."""
    return classification(pl.VPT(tokens=4, dropout=0.3), lr=1e-2, head_lr=1e-2)


def run(folder, at=None, then=None, data=toy_data, **options):
    made, steps = task(), Steps(at, then)
    plain = dict(accelerator="cpu", save_every=2, callbacks=[steps])
    return made, fit(made, data(), folder, STEPS, **plain, **options), steps.seen


def stop():
    raise ConnectionError("the power went")


def interrupt(folder, at, data=toy_data, **options) -> None:
    with pytest.raises(ConnectionError):
        run(folder, at, stop, data, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing interrupts: its task, metrics, and folder."""
    folder = tmp_path_factory.mktemp("whole")
    made, metrics, seen = run(folder)
    assert seen == ALL
    return made, metrics, folder


def assert_as_if_nothing_had_happened(made, metrics, folder, whole) -> None:
    assert same(tuned(made), tuned(whole[0])) and metrics == whole[1]
    one, other = (pd.read_csv(f / "metrics.csv").drop(columns="seconds") for f in (folder, whole[2]))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    last, expected = (torch.load(f / "last.ckpt", weights_only=True) for f in (folder, whole[2]))
    assert same(last["state_dict"], expected["state_dict"]) and last["global_step"] == expected["global_step"]
    for state, other in zip(last["optimizer_states"], expected["optimizer_states"], strict=True):
        assert all(torch.equal(state["state"][i]["exp_avg_sq"], m["exp_avg_sq"]) for i, m in other["state"].items())


# --- resuming ---


@pytest.mark.parametrize("options", [dict(), dict(check_val_every_n_epoch=1)], ids=str)
def test_a_run_that_broke_twice_ends_as_if_nothing_had_happened(options, tmp_path):
    """At most the epoch in flight is lost, with or without validation in between."""
    whole = (*run(tmp_path / "whole", **options)[:2], tmp_path / "whole")
    for at in ((1, 1), (2, 1)):
        interrupt(tmp_path / "broken", at, **options)
    made, metrics, seen = run(tmp_path / "broken", **options)
    assert seen == ALL[4:]
    assert_as_if_nothing_had_happened(made, metrics, tmp_path / "broken", whole)


class Noisy(Toy):
    """Draws at random where it reads, as data sets with random crops do."""

    def __getitem__(self, i: int) -> dict:
        sample = super().__getitem__(i)
        return sample | {"image": sample["image"] + 0.1 * torch.rand(1)}


@pytest.mark.parametrize(("kind", "workers"), [(Noisy, 0), (Toy, 2)])
def test_order_and_draws_resume_with_any_reader(kind, workers, tmp_path):
    def data():
        return EarthData(kind(8), Toy(5, seed=1), batch_size=4, workers=workers)

    made, metrics, _ = run(tmp_path / "whole", data=data)
    interrupt(tmp_path / "broken", (2, 1), data)
    again = run(tmp_path / "broken", data=data)
    assert_as_if_nothing_had_happened(*again[:2], tmp_path / "broken", (made, metrics, tmp_path / "whole"))


def test_a_finished_run_is_not_repeated_and_says_so(whole, capsys):
    made, metrics, seen = run(whole[2])
    assert seen == [] and metrics == whole[1] and same(tuned(made), tuned(whole[0])) and not made.training
    assert f"finished before: read from {whole[2] / 'results.json'}" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["train", "val", "test"])
@pytest.mark.parametrize("name", ["image", "label"])
def test_the_results_of_a_finished_run_are_those_of_its_data_alone(name, part, whole):
    data = toy_data()
    setattr(data, part, [sample | {name: sample[name] * 0.9} for sample in getattr(data, part)])
    with pytest.raises(ValueError, match=r"other settings .*data:"):
        run(whole[2], data=lambda: data)


def test_the_statistics_that_were_fitted_belong_to_the_run(whole):
    refitted = task()
    refitted.model.fit_normalization(toy_data().train_dataloader())
    with pytest.raises(ValueError, match=r"other settings .*statistics:"):
        fit(refitted, toy_data(), whole[2], STEPS, accelerator="cpu")


def test_a_run_that_lacks_only_its_results_is_evaluated(whole, tmp_path):
    (tmp_path / "last.ckpt").write_bytes((whole[2] / "last.ckpt").read_bytes())
    made, metrics, seen = run(tmp_path)
    assert seen == [] and metrics == whole[1] and same(tuned(made), tuned(whole[0]))


# --- damage ---


def test_a_damaged_checkpoint_is_an_error_that_says_what_to_do(whole, tmp_path):
    content = (whole[2] / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"last.ckpt is no whole checkpoint.*Delete it to start anew"):
        run(tmp_path)


def test_a_failed_write_leaves_the_former_checkpoint(tmp_path, monkeypatch):
    interrupt(tmp_path, (2, 0))
    before = (tmp_path / "last.ckpt").read_bytes()

    def full(checkpoint, path):
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space left"):
        run(tmp_path)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"last.ckpt", "metrics.csv"}


# --- two processes ---


def parallel(folder: Path, batch_size: int, **options):
    made = segmentation(lr=1e-2, head_lr=1e-2, augment=False)
    data = EarthData(Toy(8), Toy(5, seed=1), Toy(3, seed=2), batch_size=batch_size)
    return made, fit(made, data, folder, 4, accelerator="cpu", **options)


def process(rank: int, port: int, folder: Path) -> None:
    """One of two, as ``torchrun`` starts them."""
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    parallel(folder, batch_size=2, devices=2, strategy="ddp")


def test_two_processes_do_what_one_does(tmp_path):
    """Half the batch each; 5 and 3 images to evaluate do not divide by two."""
    port, fork = find_free_network_port(), multiprocessing.get_context("fork")
    ranks = [fork.Process(target=process, args=(rank, port, tmp_path / "two")) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(PATIENCE)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    _, metrics = parallel(tmp_path / "one", batch_size=4)
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    for stage in ("val", "test"):
        assert results["metrics"][stage] == pytest.approx(metrics[stage], abs=1e-4)
    found, expected = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("two", "one"))
    assert found["global_step"] == expected["global_step"] == 4
    for name, tensor in expected["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], tensor, rtol=0, atol=1e-4)
