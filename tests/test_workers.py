"""Grids on workers: pools, Dask, submitit and DDP give what one process gives, also when workers or parents die."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import PATIENCE, wait_for
from toy_runs import assert_same, do, toy, values, write_eurosat

import peftlib as pl
from peftlib.experiments.grid import grid, pool
from peftlib.experiments.results import gather
from peftlib.experiments.run import Place

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
    """Four short runs in this process: the runs and their table."""
    runs = grid(toy(), method=[pl.LoRA(rank=2, new_bands="mean"), pl.Frozen(new_bands="mean")], seed=[0, 1])
    return runs, do(runs, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def long(data, tmp_path_factory):
    """Three runs that can be caught in the middle, in this process: the runs and their table."""
    runs = grid(toy(epochs=40), seed=range(3))
    return runs, do(runs, tmp_path_factory.mktemp("long"))


def begun(folder: Path) -> bool:
    """Whether a run has an epoch behind it."""
    return any((folder / "work").glob("*/last.ckpt"))


def when_begun(folder: Path, action: Callable[[], None]) -> threading.Thread:
    """Do something in the middle of a run, beside what this thread does."""

    def act():
        wait_for(lambda: begun(folder))
        action()

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


# --- processes of this machine ---


@pytest.fixture(scope="module")
def workers(data):
    with pool(2, threads=1) as executor:
        yield executor


def test_a_pool_gives_what_one_process_gives(whole, workers, tmp_path):
    runs, table = whole
    assert_same(do([*runs, runs[0]], tmp_path, executor=workers), table)
    assert len(workers._processes) == 2 and sorted(path.name for path in tmp_path.glob("*.json")) == sorted(
        f"{run.key}.json" for run in runs
    )


def test_a_worker_that_dies_is_an_error_that_says_how_to_go_on(long, workers, tmp_path):
    runs, table = long
    processes = []

    def kill():
        processes.extend(workers._processes.values())
        os.kill(processes[0].pid, signal.SIGKILL)

    killer = when_begun(tmp_path, kill)
    with pytest.raises(RuntimeError, match=r"a worker died .* of 3 runs finished; run again, with a new pool, to go"):
        do(runs, tmp_path, executor=workers)
    killer.join(PATIENCE)
    for process in processes:
        process.join(PATIENCE)
        assert not process.is_alive()  # none goes on behind the back of the next call
    assert len(list(tmp_path.glob("*.json"))) < 3
    assert_same(do(runs, tmp_path), table)


# --- Dask and submitit ---


@pytest.fixture(scope="module")
def dask(data):
    distributed = pytest.importorskip("dask.distributed")
    options = dict(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        yield client


def test_dask_gives_what_one_process_gives(whole, dask, tmp_path):
    runs, table = whole
    assert_same(do(runs, tmp_path, executor=dask.get_executor()), table)


def test_dask_outlives_a_worker(long, dask, tmp_path):
    runs, table = long
    pids, killed = dask.run(os.getpid), []

    def kill():
        busy = [address for address, tasks in dask.processing().items() if tasks]
        killed.append(pids[busy[0]])
        os.kill(pids[busy[0]], signal.SIGKILL)

    killer = when_begun(tmp_path, kill)
    found = do(runs, tmp_path, executor=dask.get_executor())
    killer.join(PATIENCE)
    assert len(killed) == 1 and killed[0] not in dask.run(os.getpid).values()
    assert_same(found, table)


def test_failed_runs_are_tried_again_on_dask_too(dask, tmp_path):
    """(Dask remembers what a call gave; a second try must be made all the same.)"""
    (tmp_path / "vit.pt").write_bytes(b"no weights")
    run, clock = toy(weights=str(tmp_path / "vit.pt")), []
    executor, held = dask.get_executor(), []  # as long as a future is held, Dask gives its result to equal calls

    def submit(*call):
        held.append(executor.submit(*call))
        return held[-1]

    for _ in range(2):
        table = do([run], tmp_path, executor=SimpleNamespace(submit=submit))
        clock.append((tmp_path / f"{run.key}.json").stat().st_mtime_ns)
    assert "not a readable weights file" in table["error"].iloc[0] and clock[1] > clock[0]


def test_submitit_gives_what_one_process_gives(whole, tmp_path):
    submitit = pytest.importorskip("submitit")
    runs, table = whole
    executor = submitit.AutoExecutor(tmp_path / "jobs", cluster="local")
    executor.update_parameters(timeout_min=60)
    found = do(runs[:2], tmp_path / "rows", executor=executor)
    assert_same(found, table[table["key"].isin([run.key for run in runs[:2]])])


# --- several devices for one run ---


SCENES = dict(dataset="spectral_scenes", data={"length": 4, "size": 16, "continents": ["europe"]}, augment=False)
SCENES |= dict(epochs=1, unseen={"continents": ["africa"]}, moved=True)
TWO = dict(accelerator="cpu", threads=1, devices=2)
SCRIPT = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from peftlib.training import fit as training
from peftlib.experiments.run import Place
from test_workers import SCENES, TWO
from toy_runs import do, toy

def slow_disk(path, now=training.atomic_path):
    time.sleep(0.5)
    return now(path)

if "LOCAL_RANK" not in os.environ:  # the first process, which writes: the other must wait for its files
    training.atomic_path = slow_disk
do([toy(**SCENES)], Path(sys.argv[2]), place=Place(strategy="ddp", **TWO))
"""


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_two_devices_do_what_one_does(strategy, tmp_path):
    one, folder = do([toy(**SCENES)], tmp_path / "one"), tmp_path / "two"
    if strategy == "ddp":  # starts its script a second time
        (tmp_path / "script.py").write_text(SCRIPT)
        command = [sys.executable, str(tmp_path / "script.py"), str(TESTS), str(folder)]
        environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
        subprocess.run(command, env=environment, cwd=TESTS.parent, check=True, timeout=PATIENCE)
        two = gather(folder)
    else:
        two = do([toy(**SCENES)], folder, place=Place(strategy=strategy, **TWO))
    assert two["error"].unique().tolist() == [""]
    one, two = (values(table).set_index(["split", "metric"])["value"] for table in (one, two))
    assert dict(two) == pytest.approx(dict(one), abs=2e-3, nan_ok=True) and len(two) == len(one)
    assert {("test", "pairs"), ("unseen", "pairs"), ("rgb", "cka")} <= set(two.index)


# --- Ctrl-C and kill ---

GRID = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # started in the background, a process may be deaf to it
sys.path.insert(0, sys.argv[1])
from peftlib.experiments.grid import grid, pool
from toy_runs import do, toy

workers = pool(2, threads=1) if sys.argv[3] == "pool" else None
do(grid(toy(epochs=40), seed=range(3)), Path(sys.argv[2]), executor=workers)
"""


def alone(group: int) -> bool:
    """Whether a group has no process any more."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(
    ("kind", "number"), [("in-process", signal.SIGINT), ("pool", signal.SIGINT), ("pool", signal.SIGKILL)]
)
def test_a_grid_that_is_stopped_leaves_no_process_and_can_go_on(kind, number, long, tmp_path):
    """By Ctrl-C, or by a kill of the parent alone; the workers are in the middle of runs, with more runs waiting."""
    runs, table = long
    process = subprocess.Popen(
        [sys.executable, "-c", GRID, str(TESTS), str(tmp_path), kind],
        cwd=TESTS.parent,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
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
        assert f"stopped with {len(rows)} of 3 runs finished; run again to go on" in said.splitlines()[-1]
    if kind == "in-process":
        assert not list(tmp_path.rglob(".*"))  # no half file
    assert_same(do(runs, tmp_path), table)
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
    found = do([toy()], tmp_path / "rows", executor=Elsewhere(tmp_path / "other", monkeypatch))
    assert found["status"].tolist() == ["failed"] and found["key"].tolist() == [toy().key]
    assert rf"the data or weights here are not those the run was planned with ({toy().key})" in found["error"].iloc[0]


class Lost:
    """An executor that loses its worker, before or after the run was done."""

    def __init__(self, after: bool):
        self.after = after

    def submit(self, function, *arguments) -> Future:
        future = Future()
        if self.after:
            function(*arguments)
        future.set_exception(ConnectionError("the line went dead"))
        return future


def test_a_lost_worker_is_a_failed_run_unless_its_row_is_there(whole, tmp_path):
    runs, table = whole
    found = do(runs, tmp_path, executor=Lost(after=False))
    assert found["status"].tolist() == ["failed"] * 4 and "worker lost: ConnectionError" in found["error"].iloc[0]
    assert_same(do(runs, tmp_path, executor=Lost(after=True)), table)
