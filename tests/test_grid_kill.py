"""A grid that is killed ten times ends as if nothing had happened: at most the epoch in flight is lost each time."""

import json
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_runs import assert_same, do, toy, write_eurosat

import peftlib as pl
from peftlib.experiments.grid import grid
from peftlib.experiments.results import gather

TESTS = Path(__file__).parent
PATIENCE = 900  # seconds for one start of the grid on a machine that does much else
GRID = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_grid_kill import runs
import pytest
from toy_runs import do

do(runs(), Path(sys.argv[2]))
"""


def runs():
    """Eight, half of them with dropout: what is drawn must be drawn again."""
    methods = [pl.VPT(tokens=4, dropout=0.3, new_bands="mean"), pl.LoRA(rank=2, new_bands="mean")]
    return grid(toy(epochs=6), method=methods, seed=range(4))


def clock(seconds: float) -> Callable[[Path], Callable[[], bool]]:
    """After so many seconds."""

    def since(_folder: Path):
        end = time.monotonic() + seconds
        return lambda: time.monotonic() >= end

    return since


def new(pattern: str, seconds: float = 0.0) -> Callable[[Path], Callable[[], bool]]:
    """When a file of this kind appears that was not there at the start, or so many seconds later."""

    def since(folder: Path):
        before, seen = {(path, path.stat().st_mtime_ns) for path in folder.glob(pattern)}, []

        def there() -> bool:
            if not seen and not {(path, changed(path)) for path in folder.glob(pattern)} <= before:
                seen.append(time.monotonic())
            return bool(seen) and time.monotonic() >= seen[0] + seconds

        return there

    return since


def changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def killed(folder: Path, moment: Callable[[], bool]) -> bool:
    """Start the grid and kill it at a moment; False if it came to its end before."""
    process = subprocess.Popen(
        [sys.executable, "-c", GRID, str(TESTS), str(folder)], cwd=TESTS.parent, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and not moment():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    _, said = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), said
    return process.returncode != 0


def rows(folder: Path) -> dict[str, tuple]:
    """What each row file holds, and since when."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("[!.]*.json")}


def assert_whole(folder: Path, found: dict[str, tuple]) -> None:
    """Every row file is one finished run, and nothing else is taken for a row."""
    assert all(json.loads(content)["status"] == "done" for content, _ in found.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {f"{key}.json" for key in gather(folder)["key"]} == set(found)


@pytest.mark.slow
def test_a_grid_that_is_killed_ten_times_ends_as_if_nothing_had_happened(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTLIB_DATA", str(write_eurosat(tmp_path / "data")))
    started = time.monotonic()
    expected = do(runs(), tmp_path / "whole")
    run = (time.monotonic() - started) / len(runs())
    folder, draw = tmp_path / "killed", random.Random(0)
    folder.mkdir()

    started = time.monotonic()
    hits = killed(folder, new("work/*")(folder))  # while the first run is made ready
    start = time.monotonic() - started
    moments = [clock(start * draw.random()) for _ in range(2)]  # from the first import on
    moments += [new("work/*/last.ckpt"), new("work/*/.*.ckpt"), new("work/*/*.ckpt", 1.5 * run * draw.random())]
    moments += [new("work/*/results.json"), new("*.json"), new("work/*/best.ckpt", 1.5 * run * draw.random())]
    moments += [new(".*.json")]
    assert len(moments) == 9
    before = rows(folder)
    for moment in moments:
        hits += killed(folder, moment(folder))
        found = rows(folder)
        assert before.items() <= found.items()  # no finished run was touched
        assert_whole(folder, found)
        before = found
    assert hits >= 7 and len(before) < len(runs())

    assert not killed(folder, lambda: False)
    found = rows(folder)
    assert before.items() <= found.items() and len(found) == len(runs())
    assert_whole(folder, found)
    assert_same(gather(folder), expected)
    assert list((folder / "work").iterdir()) == []
