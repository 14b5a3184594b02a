"""Grids in this process: each run once, failures as rows, resuming, and what must not change a result."""

import signal
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from toy_runs import HERE, assert_same, do, gather, toy, write_eurosat

import peftlib as pl
from peftlib.experiments import run as run_module
from peftlib.experiments.grid import grid
from peftlib.experiments.results import read_row
from peftlib.experiments.run import Resources, run_experiment


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_eurosat(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _data(data, monkeypatch):
    monkeypatch.setenv("PEFTLIB_DATA", str(data))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Two runs that nothing disturbs: the runs, their tables, and the folder."""
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
    seen, really = [], run_module._train_and_evaluate

    def noted(experiment, *arguments):
        seen.append(experiment.seed)
        return really(experiment, *arguments)

    monkeypatch.setattr(run_module, "_train_and_evaluate", noted)
    return seen


# --- grids ---


def test_a_grid_has_every_combination_in_order():
    runs = grid(toy(steps=3), lr=[1e-3, 2e-3], seed=(0, 1, 2))
    assert [(run.lr, run.seed) for run in runs] == [(lr, seed) for lr in (1e-3, 2e-3) for seed in range(3)]
    assert {run.steps for run in runs} == {3} and grid(toy()) == [toy()]
    with pytest.raises(ValueError, match=r"an experiment has no learning_rate; it has dataset, method, .*, role"):
        grid(toy(), learning_rate=[1e-3])


def test_rows_come_in_the_order_of_the_runs_each_once_in_each_role(whole, tmp_path, trained):
    (zero, one), (runs, metrics), _ = whole
    ablation = replace(one, role="ablation")
    found = do((run for run in [one, zero, one, ablation]), tmp_path)
    assert found[0][["key", "role"]].values.tolist() == [[one.key, "final"], [zero.key, "final"], [one.key, "ablation"]]
    assert trained == [1, 0]
    assert_same((found[0][found[0]["role"] == "final"], found[1]), (runs, metrics))
    assert_same(gather(tmp_path), (runs, metrics))


def test_rows_hold_what_was_measured(whole):
    (run, _), (runs, _), folder = whole
    row = read_row(folder / f"{run.key}.json")
    assert row["experiment"] == run.to_dict() and set(row["metrics"]) == {"val", "test"}
    (first,) = runs[runs["key"] == run.key].to_dict("records")
    assert (first["images"], first["primary_metric"], first["task"]) == (9, "macro_f1", "classification")
    assert first["step_ms"] > 0 and first["peak_mb"] > 0 and first["wall_s"] > 0 and first["adapter_bytes"] > 0
    assert f"torch {version('torch')}" in first["versions"] and first["device"].startswith("cpu")
    assert first["method_parameters"] > 0 == first["input_parameters"] and len(first["backbone_hash"]) == 64
    assert (folder / "predictions" / f"{run.key}.npz").is_file()


def test_random_weights_are_drawn_from_init(whole, tmp_path):
    runs, _ = do(grid(toy(steps=1), seed=[0, 1], init=[0, 1]), tmp_path)
    hashes = runs.groupby(["seed", "init"])["backbone_hash"].first()
    assert hashes[0, 0] == hashes[1, 0] != hashes[0, 1] == hashes[1, 1]


def test_any_input_with_any_method_is_a_run(tmp_path):
    """What does not go together fails by name."""
    methods, inputs = (pl.Frozen, pl.Full, pl.LoRA, pl.Deflect), (pl.RGB, pl.Inflated, pl.EMB)
    cells = [(method(), input()) for method in methods for input in inputs]
    runs, _ = do([toy(method=method, input=input, steps=1) for method, input in cells], tmp_path)
    failed = runs[runs["status"] == "failed"]
    assert set(zip(failed["method"], failed["input"], strict=True)) == {("deflect", "rgb"), ("deflect", "inflated")}
    assert failed["error"].str.contains("needs an input that gives x_A").all() and len(runs) == len(cells)


# --- resuming ---


def test_finished_runs_are_not_repeated(whole, trained):
    runs, table, folder = whole
    before = state(folder)
    assert_same(do(runs, folder), table)
    assert run_experiment(runs[0], folder, HERE)["key"] == runs[0].key
    assert state(folder) == before and trained == []


def test_a_damaged_row_is_done_again(whole, tmp_path, trained):
    runs, table, folder = whole
    for run in runs:
        (tmp_path / f"{run.key}.json").write_bytes((folder / f"{run.key}.json").read_bytes())
    (tmp_path / f"{runs[0].key}.json").write_text('{"status": "done"')
    with pytest.warns(UserWarning, match=rf"{runs[0].key}.json is damaged"):
        found = do(runs, tmp_path)
    assert trained == [0]
    assert_same(found, table)


def test_ctrl_c_says_how_far_it_came_and_the_next_call_resumes(whole, tmp_path, monkeypatch):
    runs, table, _ = whole
    epochs = []

    class Stop(run_module.Stopwatch):
        def on_train_epoch_start(self, trainer, task):
            epochs.append(trainer.current_epoch)
            if epochs == [0, 1]:
                raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "Stopwatch", Stop)
    monkeypatch.setattr(run_module, "SAVE_EVERY", 1)
    with pytest.raises(KeyboardInterrupt, match="stopped with 0 of 2 runs finished; run again to continue"):
        do(runs, tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # Lightning had turned Ctrl-C off
    assert state(tmp_path) == {} and (tmp_path / "work" / runs[0].key / "last.ckpt").is_file()
    found = do(runs, tmp_path)
    assert epochs == [0, 1, 1, 0, 1]
    assert_same(found, table)


# --- failures ---


def test_a_failed_run_is_a_row_and_the_rest_continues(whole, tmp_path, capsys):
    (zero, one), table, _ = whole
    broken = toy(metadata=("date",))
    runs, metrics = do([zero, broken, one], tmp_path, progress=True)
    assert_same((runs[runs["status"] == "done"], metrics), table)
    (failed,) = runs[runs["status"] == "failed"].to_dict("records")
    assert failed["key"] == broken.key and failed["error"].startswith("ValueError: metadata=('date',), and images of")
    assert "run.py:" in failed["error"] and failed["wall_s"] >= 0
    said = capsys.readouterr().err
    assert "failed: eurosat LoRA(rank=2): ValueError: metadata=" in said
    assert not (tmp_path / "work" / broken.key).exists()


def test_failed_runs_are_tried_again(whole, tmp_path, monkeypatch):
    runs, table, _ = whole
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "build_task", lambda *_: 1 / 0)
        assert do(runs, tmp_path)[0]["status"].tolist() == ["failed", "failed"]
    assert gather(tmp_path)[0]["error"].str.startswith("ZeroDivisionError").all()
    assert_same(do(runs, tmp_path), table)


def test_data_that_are_not_there_are_an_error_before_anything_runs(tmp_path, monkeypatch, trained):
    monkeypatch.setenv("PEFTLIB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="eurosat"):
        do([toy(dataset="spectral_scenes", data={"length": 3}), toy()], tmp_path / "rows")
    assert trained == [] and not (tmp_path / "rows").exists()


# --- resources ---


def test_where_a_run_is_done_does_not_change_its_result(whole, tmp_path):
    runs, table, _ = whole
    resources = Resources(accelerator="cpu", workers=1, keep=True)
    assert_same(do(runs, tmp_path, resources=resources), table)
    for run in runs:
        assert [path.name for path in (tmp_path / "work" / run.key).iterdir()] == ["last.ckpt"]
