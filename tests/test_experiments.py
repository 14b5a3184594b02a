"""Grids in this process: each run once, failures as rows, going on, and what must not change a result."""

import json
import signal
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from toy_runs import HERE, assert_same, do, toy, write_eurosat

import peftlib as pl
from peftlib.experiments import run as trial
from peftlib.experiments.grid import grid, rows_dir
from peftlib.experiments.results import gather, read_row, read_table, write_table
from peftlib.experiments.run import Place, perform


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_eurosat(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _data(data, monkeypatch):
    monkeypatch.setenv("PEFTLIB_DATA", str(data))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Two runs that nothing disturbs: the runs, their table, and the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTLIB_DATA", str(data))
        runs, folder = grid(toy(), seed=[0, 1]), tmp_path_factory.mktemp("whole")
        return runs, do(runs, folder), folder


def state(folder: Path) -> dict:
    """What lies in a folder, and since when."""
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir() if p.is_file()}


@pytest.fixture
def trained(monkeypatch):
    """The seeds of the runs that are trained from here on. (What trains them is put in by tests.)"""
    seen, really = [], trial._trained

    def noted(run, work, place):
        seen.append(run.seed)
        return really(run, work, place)

    monkeypatch.setattr(trial, "_trained", noted)
    return seen


# --- grids ---


def test_a_grid_has_every_combination_in_order():
    runs = grid(toy(epochs=3), lr=[1e-3, 2e-3], seed=(0, 1, 2))
    assert [(run.lr, run.seed) for run in runs] == [(lr, seed) for lr in (1e-3, 2e-3) for seed in range(3)]
    assert {run.epochs for run in runs} == {3} and grid(toy()) == [toy()]


def test_a_field_that_runs_do_not_have_is_named_with_those_they_have():
    with pytest.raises(ValueError, match=r"a run has no learning_rate; it has dataset, method, .*, init"):
        grid(toy(), learning_rate=[1e-3])


def test_rows_come_in_the_order_of_the_runs_each_once(whole, tmp_path, trained):
    runs, table, _ = whole
    found = do((run for run in [runs[1], runs[0], replace(runs[1], init=1)]), tmp_path)  # init=1 is what seed 1 means
    assert found["key"].unique().tolist() == [runs[1].key, runs[0].key] and trained == [1, 0]
    assert_same(found, table)
    assert_same(gather(tmp_path), table)


def test_rows_hold_what_was_measured(whole):
    (run, _), _, folder = whole
    row = read_row(folder / f"{run.key}.json")
    assert row["images"] == {"train": 9, "val": 6, "test": 6} and row["run"] == json.loads(json.dumps(run.facts()))
    assert row["headline"] == "macro_f1" and set(row["metrics"]) == {"val", "test"}
    assert row["step_ms"] > 0 and row["peak_mb"] > 0 and row["wall_s"] > 0 and row["adapter_bytes"] > 0
    assert row["versions"]["torch"] == version("torch") and row["device"].startswith("cpu")
    assert 0 < row["tuned_percent"] < 100 and len(row["backbone_hash"]) == 64


def test_seeds_differ_and_the_same_seed_gives_the_same(whole):
    loss = whole[1].query("metric == 'loss' and split == 'test'").set_index("seed")["value"]
    assert loss[0] != loss[1]


def test_a_search_has_no_test_scores(tmp_path):
    assert do([toy(stage="search", epochs=1)], tmp_path)["split"].unique().tolist() == ["val"]


def test_rows_lie_with_the_runs_unless_said_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("PEFTLIB_RUNS", str(tmp_path))
    assert rows_dir() == tmp_path / "rows"
    assert do([], None).empty


def test_random_weights_are_drawn_from_init(whole, tmp_path):
    table = do(grid(toy(epochs=1), seed=[0, 1], init=[0, 1]), tmp_path)
    hashes = table.groupby(["seed", "init"])["backbone_hash"].first()
    assert hashes[0, 0] == hashes[1, 0] != hashes[0, 1] == hashes[1, 1]
    assert table["backbone_hash"].iloc[0] == whole[1]["backbone_hash"].iloc[0]


def test_weights_that_were_replaced_are_read_anew(tmp_path):
    hashes = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(pl.load_backbone("test_vit", "random").state_dict(), tmp_path / "vit.pt")
        table = do([toy(weights=str(tmp_path / "vit.pt"), epochs=1)], tmp_path / "rows")
        hashes.append(table["backbone_hash"].iloc[0])
    assert hashes[0] != hashes[1] and len(gather(tmp_path / "rows")["key"].unique()) == 2


# --- going on ---


def test_finished_runs_are_not_repeated(whole, trained):
    runs, table, folder = whole
    before = state(folder)
    assert_same(do(runs, folder), table)
    assert perform(runs[0], runs[0].key, folder, HERE)["key"] == runs[0].key
    assert state(folder) == before and trained == []


def test_known_rows_are_not_repeated(whole, tmp_path, trained):
    runs, table, _ = whole
    known = read_table(write_table(table, tmp_path / "known.csv"))
    first = known[known["key"] == runs[0].key]
    unwanted = first.assign(key="of another grid")
    found = do(runs, tmp_path / "rows", known=pd.concat([unwanted, first]))
    assert trained == [1] and set(found["key"]) == {run.key for run in runs}
    assert_same(found[found["key"] == runs[0].key], first)
    assert len(do(runs, tmp_path / "none", known=known)) == len(known) and trained == [1]
    failed = known.assign(status="failed")
    do(runs[:1], tmp_path / "again", known=failed)
    assert trained == [1, 0]


@pytest.mark.parametrize("content", ["", '{"status": "done"', "{}"])
def test_a_damaged_row_is_done_again(content, whole, tmp_path, trained):
    runs, table, folder = whole
    for run in runs:
        (tmp_path / f"{run.key}.json").write_bytes((folder / f"{run.key}.json").read_bytes())
    (tmp_path / f"{runs[0].key}.json").write_text(content)
    with pytest.warns(UserWarning, match=rf"{runs[0].key}.json is damaged"):
        found = do(runs, tmp_path)
    assert trained == [0]
    assert_same(found, table)


def test_a_run_goes_on_after_its_last_epoch(whole, tmp_path, monkeypatch):
    runs, table, _ = whole
    epochs, save = [], trial.Stopwatch.on_train_end

    class Stop(trial.Stopwatch):
        def on_train_epoch_start(self, trainer, task):
            epochs.append(trainer.current_epoch)
            if epochs == [0, 1]:
                raise KeyboardInterrupt

        on_train_end = save

    monkeypatch.setattr(trial, "Stopwatch", Stop)
    with pytest.raises(KeyboardInterrupt, match="stopped with 0 of 2 runs finished; run again to go on"):
        do(runs, tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # Lightning had turned Ctrl-C off
    assert state(tmp_path) == {} and (tmp_path / "work" / runs[0].key / "last.ckpt").is_file()
    found = do(runs, tmp_path)
    assert epochs == [0, 1, 1, 0, 1]
    assert_same(found, table)


# --- failures ---


def test_a_failed_run_is_a_row_and_the_rest_goes_on(whole, tmp_path, capsys):
    runs, table, _ = whole
    broken = toy(schedule="zigzag")
    found = do([runs[0], broken, runs[1]], tmp_path, progress=True)
    assert_same(found[found["status"] == "done"], table)
    (failed,) = found[found["status"] == "failed"].to_dict("records")
    assert failed["key"] == broken.key and failed["error"].startswith("ValueError: schedule='zigzag'; choose from")
    assert "learning.py:" in failed["error"] and np.isnan(failed["value"]) and failed["wall_s"] >= 0
    assert "failed: eurosat lora seed 0: ValueError: schedule='zigzag'" in capsys.readouterr().out
    assert not (tmp_path / "work" / broken.key).exists()


@pytest.fixture
def flaky(monkeypatch):
    """Runs of seed 1 fail until the list is emptied."""
    reasons, really = ["no memory"], trial._trained

    def trained(run, work, place):
        if run.seed == 1 and reasons:
            raise RuntimeError(reasons[0])
        return really(run, work, place)

    monkeypatch.setattr(trial, "_trained", trained)
    return reasons


def test_failed_runs_are_tried_again_unless_told_otherwise(flaky, whole, tmp_path):
    runs, table, _ = whole
    assert do(runs, tmp_path)["status"].value_counts()["failed"] == 1
    before = state(tmp_path)
    flaky.clear()
    found = do(runs, tmp_path, retry_failed=False)
    assert found[found["seed"] == 1]["error"].iloc[0].startswith("RuntimeError: no memory")
    assert state(tmp_path) == before
    assert_same(do(runs, tmp_path), table)


def test_data_that_are_not_there_are_an_error_before_anything_runs(tmp_path, monkeypatch, trained):
    monkeypatch.setenv("PEFTLIB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="eurosat"):
        do([toy(dataset="spectral_scenes", data={"length": 3}), toy()], tmp_path / "rows")
    assert trained == [] and not (tmp_path / "rows").exists()


def test_a_failure_takes_no_row_from_another_process_that_has_done_the_run(whole, tmp_path, monkeypatch):
    (run, _), _, folder = whole
    row = (folder / f"{run.key}.json").read_text()

    def beaten(*_):
        (tmp_path / f"{run.key}.json").write_text(row)
        raise FileNotFoundError("best.ckpt")  # which the other one has cleared away

    monkeypatch.setattr(trial, "_trained", beaten)
    assert do([run], tmp_path)["status"].unique().tolist() == ["done"]
    assert (tmp_path / f"{run.key}.json").read_text() == row


# --- the place ---


def test_where_a_run_is_done_does_not_change_its_result(whole, tmp_path):
    runs, table, _ = whole
    place = Place(accelerator="cpu", threads=1, workers=1, keep=True)
    assert_same(do(runs, tmp_path, place=place), table)
    for run in runs:
        assert [path.name for path in (tmp_path / "work" / run.key).iterdir()] == ["best.ckpt"]


def test_the_work_of_finished_runs_is_removed(whole):
    runs, _, folder = whole
    assert list((folder / "work").iterdir()) == []
    assert {path.name for path in folder.iterdir()} == {"work", *(f"{run.key}.json" for run in runs)}


def test_what_a_kill_after_the_row_left_is_removed_and_what_was_kept_stays(whole, tmp_path):
    runs, _, _ = whole
    place = Place(accelerator="cpu", threads=1, keep=True)
    do(runs, tmp_path, place=place)
    cut, kept = (tmp_path / "work" / run.key for run in runs[:2])
    (cut / "last.ckpt").write_bytes(b"half")
    do(runs, tmp_path)
    assert not cut.exists() and [path.name for path in kept.iterdir()] == ["best.ckpt"]


def test_threads_are_as_asked_for(tmp_path):
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            run = toy(epochs=1, seed=threads, train_images=4, val_images=2)
            table = do([run], tmp_path, place=Place(accelerator="cpu", threads=threads))
            assert f"{threads} threads" in table["device"].iloc[0] and torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_batch_that_devices_cannot_share_fails_by_name(tmp_path):
    (row,) = do([toy()], tmp_path, place=Place(accelerator="cpu", devices=3)).to_dict("records")
    assert "a batch of 4 images cannot be shared by 3 devices" in row["error"]
