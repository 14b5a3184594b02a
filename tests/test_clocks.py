"""Clocks that are set back, files of the past and of the future: what is finished is not repeated, what changed is."""

import os
import time

import pytest
import torch
from faults import eurosat, files, two
from helpers import tiny_vit
from test_runner import write_notebook
from toy_runs import assert_same, do, forget, toy

from peftlib.experiments import run as trial
from peftlib.experiments.results import read_row
from peftlib.experiments.run import Place
from peftlib.studies.notebooks import run_notebooks
from peftlib.training import fit as training

TIMES = [86_400, 4_000_000_000]  # seconds of 1970, and of 2096


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    with eurosat(tmp_path_factory.mktemp("data")) as root:
        yield root


@pytest.mark.parametrize("then", TIMES)
def test_finished_runs_are_not_repeated_whatever_their_files_time(then, data, tmp_path, monkeypatch):
    expected = do(two(), tmp_path / "whole")
    torch.save(tiny_vit().state_dict(), tmp_path / "vit.pt")
    do(two(), tmp_path / "rows", place=Place(accelerator="cpu", threads=1, keep=True))
    before = files(tmp_path)
    for path in [*tmp_path.rglob("*"), *data.rglob("*")]:
        os.utime(path, (then, then))
    forget()
    monkeypatch.setattr(trial, "_trained", lambda *_: pytest.fail("a finished run was repeated"))
    assert_same(do(two(), tmp_path / "rows", place=Place(accelerator="cpu", threads=1, keep=True)), expected)
    assert files(tmp_path) == before


@pytest.mark.parametrize("then", TIMES)
def test_a_run_goes_on_from_checkpoints_of_any_time(then, tmp_path, monkeypatch):
    run, epochs = toy(epochs=4), []
    expected = do([run], tmp_path / "whole")
    start = training.Keeper.on_train_epoch_start

    def noted(self, trainer, task):
        epochs.append(trainer.current_epoch)
        if epochs == [0, 1, 2]:
            raise KeyboardInterrupt
        start(self, trainer, task)

    monkeypatch.setattr(training.Keeper, "on_train_epoch_start", noted)
    with pytest.raises(KeyboardInterrupt):
        do([run], tmp_path / "rows")
    for path in (tmp_path / "rows").rglob("*"):
        os.utime(path, (then, then))
    assert_same(do([run], tmp_path / "rows"), expected)
    assert epochs == [0, 1, 2, 2, 3]


def test_a_clock_that_is_set_back_gives_no_negative_time(tmp_path, monkeypatch):
    clock = iter(range(2_000_000_000, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    do([toy()], tmp_path)
    found = read_row(tmp_path / f"{toy().key}.json")
    assert found["wall_s"] > 0 and found["step_ms"] > 0


@pytest.mark.parametrize("then", TIMES)
def test_notebooks_are_rerun_for_what_changed_and_not_for_its_time(then, tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PEFTLIB_FIGURES", str(tmp_path / "figures"))
    cell = "import os, pathlib\nfolder = pathlib.Path(os.environ['PEFTLIB_FIGURES'], 'quick')\n"
    cell += "folder.mkdir(parents=True, exist_ok=True)\n(folder / 'a.png').write_bytes(b'png')"
    book = write_notebook(tmp_path / "a.ipynb", "profile: str = 'quick'", cells=[cell])
    (first,) = run_notebooks([book])
    assert len(first.figures) == 1
    for path in tmp_path.rglob("*"):
        os.utime(path, (then, then))
    assert not run_notebooks([book], if_changed=True)[0].ran
    write_notebook(book, "profile: str = 'quick'", cells=[cell + "\nprint('more')"])
    os.utime(book, (86_400, 86_400))  # changed, and older than its copy
    (again,) = run_notebooks([book], if_changed=True)
    assert again.ran and len(again.figures) == 1 and again.seconds > 0
