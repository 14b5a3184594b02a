"""Kills at a chosen moment, disks that are full or read-only, and what their tests make."""

import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
from helpers import PATIENCE
from matplotlib.figure import Figure
from toy_runs import toy, write_eurosat

from peftlib.experiments.config import Run
from peftlib.experiments.grid import grid

KILLS = [signal.SIGTERM, signal.SIGKILL]
DISK = 64 << 10  # bytes of a small disk
DATA = np.random.default_rng(0).bytes(200_000)  # more than it holds
CHECKSUM = "sha256:" + hashlib.sha256(DATA).hexdigest()

# Clean processes, with the imports behind them: a fork of this one, with its threads, might hang.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["test_kills", "test_two_grids"])


def child(function: Callable, *arguments):
    """A process that will do something in this one's environment, as it is now."""
    with pytest.MonkeyPatch.context() as patch:  # for the process that is forked: Python 3.11 gives it no search path
        search = [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, search)))
        forkserver.ensure_running()
    return processes.Process(target=do_there, args=(dict(os.environ), function, *arguments))


def do_there(environment: dict[str, str], function: Callable, *arguments) -> None:
    """Do something in an environment that may be newer than the process that was forked."""
    os.environ.clear()
    os.environ.update(environment)
    function(*arguments)


def in_child(function: Callable, *arguments) -> int:
    """Do something in a process of its own; its exit code, minus the signal that ended it."""
    process = child(function, *arguments)
    process.start()
    process.join(PATIENCE)
    assert process.exitcode is not None
    return process.exitcode


def end_at(step: int, number: int, folder: Path, function: Callable, *arguments) -> None:
    """Do something, and end this process by a signal at the so-maniest open, rename, removal ... under a folder."""
    count, root = 0, str(folder)

    def audit(event: str, facts: tuple) -> None:
        nonlocal count
        if event in ("open", "os.rename", "os.remove", "os.chmod", "os.mkdir") and str(facts[0]).startswith(root):
            count += 1
            if count == step:
                if event == "open" and facts[2] & os.O_TRUNC and os.path.exists(facts[0]):
                    os.truncate(facts[0], 0)  # as the open is about to do
                os.kill(os.getpid(), number)

    sys.addaudithook(audit)
    function(*arguments)


def killed_at_every_step(number: int, folder: Path, after: Callable[[], None], function: Callable, *arguments) -> int:
    """End something at its first step in a folder, its second ..., with a check after each; how many there were."""
    for step in range(1, 200):
        code = in_child(end_at, step, number, folder, function, *arguments)
        if code == 0:
            return step - 1
        assert code == -number
        after()
    raise AssertionError("it never comes to its end")


def gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


# --- disks -----------------------------------------------------------------------------------------------------------


class Disk:
    """A folder that takes ``DISK`` bytes, or files of so many bytes, until ``grow`` is called."""

    def __init__(self, folder: Path, kind: str):
        self.folder, self.kind = folder, kind

    def grow(self) -> None:
        if self.kind == "tmpfs":
            subprocess.run(["mount", "-o", "remount,size=64m", str(self.folder)], check=True)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextmanager
def small_disk(folder: Path, kind: str):
    """A small tmpfs at a folder, or, where nobody may mount, a limit to this process's files."""
    folder.mkdir()
    if kind == "tmpfs":
        mount(folder, "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs")
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (DISK, resource.RLIM_INFINITY))
    disk = Disk(folder, kind)
    try:
        yield disk
    finally:
        disk.grow()
        if kind == "tmpfs":
            subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def read_only(folder: Path):
    """A folder that nobody can write into: by a mount for root, by its permissions for others."""
    if os.geteuid() == 0:
        mount(folder, "--bind", str(folder))
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        undo = ["umount", "-l", str(folder)]
    else:
        subprocess.run(["chmod", "-R", "a-w", str(folder)], check=True)
        undo = ["chmod", "-R", "u+w", str(folder)]
    try:
        yield
    finally:
        subprocess.run(undo, check=True)


def mount(folder: Path, *options: str) -> None:
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("only root can mount, and this is not root, or there is no mount")
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine allows no mount: {done.stderr.strip()}")


# --- what is made, and what there is ---------------------------------------------------------------------------------


@contextmanager
def eurosat(root: Path):
    """Tiny images where this process and those that it starts look for data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTLIB_DATA", str(write_eurosat(root)))
        yield root


def two() -> list[Run]:
    return grid(toy(), seed=[0, 1])


def picture(seed: int, side: int = 30) -> Figure:
    figure = Figure(figsize=(1, 1))
    figure.subplots().imshow(np.random.default_rng(seed).random((side, side, 3)))
    return figure


def files(folder: Path) -> dict[str, bytes]:
    """What there is, but for temporary files that a kill left."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not path.name.startswith(".")}


def metrics(folder: Path) -> dict[str, tuple]:
    """Key -> status and metrics of the rows in a folder."""
    rows = [json.loads(path.read_text()) for path in folder.glob("[!.]*.json")]
    return {row["key"]: (row["status"], row.get("metrics")) for row in rows}
