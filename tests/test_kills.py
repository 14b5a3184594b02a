"""Kills: what is ended at any moment leaves old files or new ones, no process, and the next call goes on."""

import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from faults import (
    KILLS,
    child,
    eurosat,
    files,
    gone,
    in_child,
    killed_at_every_step,
    metrics,
    picture,
    two,
)
from helpers import PATIENCE, SAVANNA, adapted, randomise, tiny_vit, wait_for
from test_download import packed
from test_rows import row
from test_runner import write_notebook
from toy_runs import HERE, assert_same, do, toy

import peftlib as pl
from peftlib.data.download import unpack
from peftlib.experiments.grid import execute, grid, pool
from peftlib.experiments.results import check_reference, gather, write_row
from peftlib.files import fingerprint
from peftlib.model.adapter_file import load_adapter, save_adapter
from peftlib.studies.notebooks import run_notebooks
from peftlib.studies.plots import save_figure
from peftlib.training import fit as training


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    with eurosat(tmp_path_factory.mktemp("data")) as root:
        yield root


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Two runs that nothing disturbs: their table and their rows."""
    folder = tmp_path_factory.mktemp("whole")
    return do(two(), folder), metrics(folder)


# --- a write, at every step ---


def adapter(seed: int):
    model = randomise(adapted(pl.LoRA(), SAVANNA))
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad:
                tensor.add_(seed)
    return model


def write_it(kind: str, folder: Path, seed: int) -> None:
    """A file of a kind, which depends on a seed."""
    if kind == "row":
        write_row(folder / "ab.json", row("ab", wall_s=float(seed)))
    elif kind == "adapter":
        save_adapter(adapter(seed), folder / "a.safetensors")
    else:
        save_figure(picture(seed), "a", "quick")


@pytest.mark.parametrize("number", KILLS)
@pytest.mark.parametrize("kind", ["row", "adapter", "figure"])
def test_a_write_that_is_killed_at_any_step_leaves_the_old_file_or_the_new(kind, number, tmp_path, monkeypatch):
    expected, folder = [], tmp_path / "folder"
    monkeypatch.setenv("PEFTLIB_FIGURES", str(folder))
    for seed in (1, 0):  # where the kills will be: other tests may have changed matplotlib's style here
        assert in_child(write_it, kind, folder, seed) == 0
        expected.insert(0, contents(folder))
    old, new = expected
    shutil.copytree(folder, tmp_path / "old")
    assert all(old[name] != new[name] for name in old)
    states = []

    def whole_and_old_again() -> None:
        found = contents(folder)
        assert found.keys() == old.keys() and all(found[name] in (old[name], new[name]) for name in old)
        states.append(found == old)
        if kind == "row":
            assert gather(folder)["key"].unique().tolist() == ["ab"]
        shutil.copytree(tmp_path / "old", folder, dirs_exist_ok=True)

    assert killed_at_every_step(number, folder, whole_and_old_again, write_it, kind, folder, 1) >= 4
    assert states[0] and not states[-1]  # killed before the rename, and after
    assert contents(folder) == new


def contents(folder: Path) -> dict:
    """What files hold; of adapters their weights, since safetensors puts metadata into any order."""
    found = files(folder)
    for name in found:
        if name.endswith(".safetensors"):
            found[name] = fingerprint(load_adapter(tiny_vit(), folder / name).adapter_state())
    return found


@pytest.mark.parametrize("number", KILLS)
def test_an_unpacking_that_is_killed_at_any_step_leaves_no_folder_or_a_whole_one(number, tmp_path):
    contents = {"top/a.txt": b"1" * 5000, "top/deep/b.txt": b"2"}
    archive, folder = packed(tmp_path / "a.zip", contents), tmp_path / "set" / "data"
    unpack(archive, tmp_path / "whole")

    def none_or_whole() -> None:
        if folder.exists():
            assert files(folder) == files(tmp_path / "whole")
            folder.rename(tmp_path / f"done{time.monotonic_ns()}")

    assert killed_at_every_step(number, tmp_path / "set", none_or_whole, unpack, archive, folder) >= 5
    assert files(folder) == files(tmp_path / "whole") and [p.name for p in folder.parent.iterdir()] == ["data"]


def test_reference_numbers_are_replaced_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("peftlib.experiments.results.root", lambda: tmp_path)
    check_reference("a", {"x": 1.0}, "quick", 0.1, update=True)
    before = files(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        check_reference("a", {"x": 2.0}, "quick", 0.1, update=True)
    assert files(tmp_path) == before and before


# --- grids and notebooks ---


def grid_ended_at(moment: str, number: int, folder: Path) -> None:
    """Two runs, ended in the second at a moment of its training or evaluation."""
    torch.set_num_threads(1)

    def end(_, trainer, *__):
        if any(folder.glob("[!.]*.json")) and (moment != "on_train_batch_start" or trainer.current_epoch == 1):
            os.kill(os.getpid(), number)

    setattr(training.Keeper, moment, end)
    do(two(), folder)


@pytest.mark.parametrize("number", KILLS)
@pytest.mark.parametrize("moment", ["on_train_batch_start", "on_test_batch_end"])
def test_a_grid_ends_at_a_signal_and_goes_on(moment, number, whole, tmp_path):
    """In the last batch of a test too, after which Lightning looks for no signal."""
    assert in_child(grid_ended_at, moment, number, tmp_path) == -number
    found = metrics(tmp_path)
    before = files(tmp_path)
    assert len(found) == 1 and found.items() <= whole[1].items()
    assert_same(do(two(), tmp_path), whole[0])
    assert before[next(iter(found)) + ".json"] == files(tmp_path)[next(iter(found)) + ".json"]
    assert not list(tmp_path.glob("work/*"))


def grid_in_a_pool(folder: Path) -> None:
    workers = pool(1, threads=1)
    runs = grid(toy(epochs=300), seed=range(2))
    workers.submit(os.getpid).add_done_callback(lambda done: (folder / "pid").write_text(str(done.result())))
    execute(runs, workers, folder, HERE, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("number", KILLS)
def test_a_pool_leaves_no_process_when_its_parent_is_killed(number, tmp_path):
    process = child(grid_in_a_pool, tmp_path)
    process.start()
    wait_for(lambda: list(tmp_path.glob("work/*/last.ckpt")))
    worker = int((tmp_path / "pid").read_text())
    assert not gone(worker)
    os.kill(process.pid, number)
    process.join(PATIENCE)
    assert process.exitcode == -number and not metrics(tmp_path)
    wait_for(lambda: gone(worker))


@pytest.mark.parametrize("number", KILLS)
def test_a_notebook_that_is_killed_leaves_the_former_copy_and_no_kernel(number, tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PEFTLIB_FIGURES", str(tmp_path / "figures"))
    marker = tmp_path / "pid"
    cell = f"import os, time\nopen({str(marker)!r}, 'w').write(str(os.getpid()))\ntime.sleep(wait)"
    book = write_notebook(tmp_path / "a.ipynb", "wait: int = 0", cells=[cell])
    (made,) = run_notebooks([book])
    before = made.copy.read_bytes()
    marker.unlink()
    process = child(run_notebooks, [book], "quick", {"wait": "1000"})
    process.start()
    wait_for(lambda: not process.is_alive() or (marker.is_file() and marker.read_text()))
    assert process.is_alive()
    copies = list(made.copy.parent.iterdir())
    os.kill(process.pid, number)
    process.join(PATIENCE)
    assert process.exitcode not in (0, None)
    wait_for(lambda: gone(int(marker.read_text())))
    assert len(copies) == 2 and made.copy.read_bytes() == before  # a new copy was begun beside the former
    (again,) = run_notebooks([book], if_changed=True)
    assert not again.ran and not made.copy.with_suffix(".failed.ipynb").exists()
