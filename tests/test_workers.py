"""Grids on workers: processes, Dask, and submitit give what one process gives, also when workers or parents die."""

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
from helpers import PATIENCE, wait_for
from toy_runs import assert_same, do, toy, write_eurosat

import peftlib as pl
from peftlib.experiments.grid import grid, sbatch_options

TESTS = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    """Data of this process and of those that it starts."""
    root = write_eurosat(tmp_path_factory.mktemp("data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTLIB_DATA", str(root))
        yield root


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Four short runs in this process: the runs and their tables."""
    runs = grid(toy(), method=[pl.LoRA(rank=2), pl.Frozen()], seed=[0, 1])
    return runs, do(runs, tmp_path_factory.mktemp("whole"))


def many(steps: int = 60) -> list:
    """Runs that can be caught in the middle, with dropout: what is drawn must be drawn again."""
    return grid(toy(method=pl.VPT(tokens=4, dropout=0.3), steps=steps), seed=range(3))


@pytest.fixture(scope="module")
def long(data, tmp_path_factory):
    return many(), do(many(), tmp_path_factory.mktemp("long"))


@pytest.fixture(scope="module")
def longer(data, tmp_path_factory):
    """For workers, which write a checkpoint every hundred steps."""
    return many(300), do(many(300), tmp_path_factory.mktemp("longer"))


def begun(folder: Path) -> bool:
    """Whether a run has a checkpoint behind it."""
    return any((folder / "work").glob("*/last.ckpt"))


# --- executors ---


def test_processes_give_what_one_process_gives(whole, tmp_path):
    runs, tables = whole
    assert_same(do([*runs, runs[0]], tmp_path, executor="processes", workers=2), tables)
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == sorted(run.key for run in runs)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(executor="threads"), "'threads'; choose from in-process, processes, dask, slurm"),
        (dict(executor="processes", time=5), r"'processes' takes no options \['time'\]"),
        (dict(executor="dask", adress="tcp://here:1"), r"'dask' takes no options \['adress'\]"),
    ],
)
def test_unknown_executors_and_options_are_named(options, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        do([toy()], tmp_path, **options)


@pytest.mark.slow
def test_a_worker_that_dies_is_an_error_and_the_next_call_resumes(longer, tmp_path):
    runs, tables = longer

    def kill():
        wait_for(lambda: begun(tmp_path))
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        for child in children:
            if "popen_loky" in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(int(child), signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(RuntimeError, match="excessive memory usage"):
        do(runs, tmp_path, executor="processes", workers=2)
    killer.join(PATIENCE)
    assert len(list(tmp_path.glob("*.json"))) < 3
    assert_same(do(runs, tmp_path), tables)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dask", "submitit"])
def test_clusters_give_what_one_process_gives(kind, whole, tmp_path):
    module, (runs, tables) = pytest.importorskip({"dask": "dask.distributed"}.get(kind, kind)), whole
    options = dict(executor="dask", workers=2)
    if kind == "submitit":
        options = dict(executor=module.AutoExecutor(tmp_path / "jobs", cluster="local"))
        options["executor"].update_parameters(timeout_min=60)
    assert_same(do(runs, tmp_path / "rows", **options), tables)


@pytest.mark.slow
def test_a_dask_scheduler_is_found_by_its_address(whole, tmp_path):
    runs, tables = whole
    with pytest.importorskip("dask.distributed").LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None
    ) as there:
        options = dict(executor="dask", address=there.scheduler_address)
        assert_same(do(runs, tmp_path, **options), tables)
        assert there.status.name == "running" and len(there.workers) == 1  # the cluster outlives the grid


SLURM = dict(gpus_per_node=1, cpus_per_task=8, partition="fast", account="mine", time=90)
SBATCH = """#!/bin/sh
if grep -q account=poor "$1"; then echo "Invalid account" >&2; exit 1; fi
cp "$1" {folder}/submitted; echo "Submitted batch job 7"
"""


def test_slurm_gets_the_options_asked_for_as_an_array_or_says_what_is_wrong(tmp_path, monkeypatch):
    """With an sbatch of ours in the place of Slurm's, which loses every job."""
    pytest.importorskip("submitit")
    asked = {"--gpus-per-node=1", "--cpus-per-task=8", "--partition=fast", "--account=mine", "--time=90"}
    assert asked <= {line.removeprefix("#SBATCH ") for line in sbatch_options(**SLURM).splitlines()}
    monkeypatch.setenv("PEFTLIB_RUNS", str(tmp_path / "runs"))
    with pytest.raises(RuntimeError, match="srun"):  # and nothing runs here
        do([toy(seed=8)], tmp_path, executor="slurm", **SLURM)
    for name, text in (("srun", ""), ("sbatch", SBATCH.format(folder=tmp_path)), ("sacct", "#!/bin/sh\nexit 1\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(Exception, match="Invalid account"):
        do(grid(toy(), seed=[8, 9]), tmp_path, executor="slurm", **SLURM | {"account": "poor"})
    monkeypatch.setattr("submitit.SlurmJob.done", lambda _: True)
    monkeypatch.setattr("submitit.SlurmJob.result", Lost.result)
    runs, _ = do(grid(toy(), seed=[8, 9]), tmp_path, executor="slurm", **SLURM)
    assert asked | {"--array=0-1%2"} <= set((tmp_path / "submitted").read_text().replace("#SBATCH ", "").splitlines())
    assert set(runs["status"]) == {"failed"} and "the node went dark" in runs["error"][0]


# --- Ctrl-C and kill ---

GRID = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # started in the background, a process may be deaf to it
sys.path.insert(0, sys.argv[1])
from peftlib.experiments import run
from test_workers import many
from toy_runs import do

run.SAVE_EVERY = 1
do(many(int(sys.argv[4])), Path(sys.argv[2]), executor=sys.argv[3], workers=2)
"""


def alone(group: int) -> bool:
    """Whether a group has no process any more."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(
    ("executor", "number"),
    [
        ("in-process", signal.SIGKILL),
        pytest.param("processes", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("processes", signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_a_grid_that_is_stopped_leaves_no_process_and_resumes_to_the_same_bits(executor, number, request, tmp_path):
    """By Ctrl-C, or by a kill of the parent alone, in the middle of runs, with more runs waiting."""
    runs, tables = request.getfixturevalue("long" if executor == "in-process" else "longer")
    command = [sys.executable, "-c", GRID, str(TESTS), str(tmp_path), executor, str(runs[0].steps)]
    pipes = dict(stderr=subprocess.PIPE, text=True, start_new_session=True)
    process = subprocess.Popen(command, cwd=TESTS.parent, **pipes)
    try:
        wait_for(lambda: begun(tmp_path) or process.poll() is not None)
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE)
        wait_for(lambda: alone(process.pid))
    finally:
        if not alone(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -number, said
    rows = list(tmp_path.glob("*.json"))
    assert len(rows) < len(runs) and all(json.loads(path.read_text())["status"] == "done" for path in rows)
    if number == signal.SIGINT:
        assert f"stopped with {len(rows)} of 3 runs finished; run again to continue" in said.splitlines()[-1]
    assert_same(do(runs, tmp_path), tables)
    assert not list(tmp_path.glob("work/*"))


# --- workers that are not what they should be ---


class Elsewhere:
    """An executor whose worker has other data."""

    def __init__(self, root, monkeypatch):
        self.root, self.monkeypatch = root, monkeypatch

    def submit(self, function, *arguments) -> Future:
        future = Future()
        with self.monkeypatch.context() as patch:
            patch.setenv("PEFTLIB_DATA", str(self.root))
            future.set_result(function(*arguments))
        return future


def test_other_data_at_the_worker_fail_by_name(tmp_path, monkeypatch):
    write_eurosat(tmp_path / "other", train=12)
    runs, _ = do([toy()], tmp_path / "rows", executor=Elsewhere(tmp_path / "other", monkeypatch))
    assert runs["status"].tolist() == ["failed"] and runs["key"].tolist() == [toy().key]
    assert f"the data or weights here are not those that {toy().key} was planned with" in runs["error"][0]


class Lost:
    """An executor that loses its worker, before or after the run was done."""

    def result(self):
        raise ConnectionError("the node went dark")

    def __init__(self, after: bool):
        self.after = after

    def submit(self, function, *arguments) -> Future:
        future = Future()
        if self.after:
            function(*arguments)
        future.set_exception(ConnectionError("the line went dead"))
        return future


def test_a_lost_worker_is_a_failed_run_unless_its_row_is_there(whole, tmp_path):
    runs, tables = whole
    found, _ = do(runs, tmp_path, executor=Lost(after=False))
    assert found["status"].tolist() == ["failed"] * 4 and "worker lost: ConnectionError" in found["error"][0]
    assert_same(do(runs, tmp_path, executor=Lost(after=True)), tables)
