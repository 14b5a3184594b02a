"""Kills at a chosen moment, and disks that are full or read-only."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path

import pytest

KILLS = [signal.SIGTERM, signal.SIGKILL]
PATIENCE = 300  # seconds that a loaded machine may need
DISK = 64 << 10  # bytes of a small disk

# Clean processes, with the imports behind them: a fork of this one, with its threads, might hang.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["test_faults"])


def start_processes() -> None:
    """Start the process that is forked, where it finds the tests' modules (Python 3.11 passes it no search path)."""
    with pytest.MonkeyPatch.context() as patch:
        search = [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, search)))
        forkserver.ensure_running()


def in_child(function: Callable, *arguments) -> int:
    """Do something in a process of its own; its exit code, minus the signal that ended it."""
    process = processes.Process(target=function, args=arguments)
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


def wait_for(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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


def files(folder: Path) -> dict[str, bytes]:
    """What there is, but for temporary files that a kill left."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not path.name.startswith(".")}


def metrics(folder: Path) -> dict[str, tuple]:
    """Key -> status and metrics of the rows in a folder."""
    rows = [json.loads(path.read_text()) for path in folder.glob("[!.]*.json")]
    return {row["key"]: (row["status"], row.get("metrics")) for row in rows}
