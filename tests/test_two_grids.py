"""Two grids at once in one folder: each run is done once, and rows are those of one grid."""

import time
from pathlib import Path

import pytest
import torch
from faults import child, eurosat, in_child, metrics, processes, two
from helpers import PATIENCE, wait_for
from toy_runs import HERE, assert_same, do, toy

import peftlib as pl
from peftlib.experiments import run as trial
from peftlib.experiments.config import Run
from peftlib.experiments.grid import grid
from peftlib.experiments.results import gather


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    with eurosat(tmp_path_factory.mktemp("data")) as root:
        yield root


def three() -> list[Run]:
    return grid(toy(epochs=6, method=pl.VPT(tokens=4, dropout=0.3, new_bands="mean")), seed=range(3))


def grid_beside(folder: Path, start) -> None:
    torch.set_num_threads(1)
    start.wait(PATIENCE)
    table = do(three(), folder)
    assert table["status"].unique().tolist() == ["done"]


def test_two_grids_in_one_folder_give_the_rows_of_one(tmp_path):
    expected = do(three(), tmp_path / "one")
    start = processes.Barrier(2)
    both = [child(grid_beside, tmp_path / "two", start) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(PATIENCE)
    assert [process.exitcode for process in both] == [0, 0]
    assert_same(gather(tmp_path / "two"), expected)
    assert metrics(tmp_path / "two") == metrics(tmp_path / "one") and not list((tmp_path / "two" / "work").iterdir())


def perform_noting(run, folder: Path, note: Path, hold: float) -> None:
    """Do a run, and note when its training began and ended."""
    trained = trial._trained

    def noted(*arguments):
        with open(note, "a") as file:
            file.write("begin\n")
        time.sleep(hold)
        found = trained(*arguments)
        with open(note, "a") as file:
            file.write("end\n")
        return found

    trial._trained = noted
    assert trial.perform(run, run.key, folder, HERE)["status"] == "done"


def test_a_run_is_done_by_one_process_at_a_time_and_once(tmp_path):
    """Two at once would share its checkpoints, and one could score the other's earlier epoch."""
    run, note = toy(), tmp_path / "note"
    first = child(perform_noting, run, tmp_path / "rows", note, 1.0)
    first.start()
    wait_for(note.is_file)
    assert in_child(perform_noting, run, tmp_path / "rows", note, 0.0) == 0
    first.join(PATIENCE)
    assert first.exitcode == 0 and note.read_text().split() == ["begin", "end"]


def test_a_claim_ends_with_its_process(tmp_path):
    expected = do(two(), tmp_path / "whole")
    process = child(perform_noting, two()[0], tmp_path / "rows", tmp_path / "note", 1000.0)
    process.start()
    wait_for((tmp_path / "note").is_file)
    process.kill()
    process.join(PATIENCE)
    assert_same(do(two(), tmp_path / "rows"), expected)
