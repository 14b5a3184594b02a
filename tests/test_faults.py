"""Kills, full and read-only disks, two grids at once, clocks set back: nothing is lost, nothing half is read."""

import errno
import hashlib
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from faults import (
    KILLS,
    files,
    gone,
    in_child,
    killed_at_every_step,
    metrics,
    processes,
    read_only,
    small_disk,
    start_processes,
    wait_for,
)
from helpers import SAVANNA, adapted, randomise, tiny_vit
from matplotlib.figure import Figure
from server import serve
from test_download import packed, part
from test_predict import FILE_BANDS, write
from test_rows import row
from test_runner import write_notebook
from toy_data import segmentation
from toy_runs import HERE, assert_same, do, forget, toy, write_eurosat

import peftlib as pl
from peftlib import training, trial
from peftlib.__main__ import main
from peftlib.adapters import load_adapter, save_adapter
from peftlib.datasets import download
from peftlib.datasets.download import fetch, unpack
from peftlib.experiments import execute, grid, pool
from peftlib.plots import save_figure
from peftlib.predict import Mapper
from peftlib.results import check_reference, gather, read_row, write_row
from peftlib.runner import run_notebooks
from peftlib.trial import Place
from peftlib.weights import fingerprint

DATA = np.random.default_rng(0).bytes(200_000)
CHECKSUM = "sha256:" + hashlib.sha256(DATA).hexdigest()
DISKS = ["tmpfs", "limit"]


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    root = write_eurosat(tmp_path_factory.mktemp("data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTLIB_DATA", str(root))
        start_processes()
        yield root


def two():
    return grid(toy(), seed=[0, 1])


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Two runs that nothing disturbs: their table and their rows."""
    folder = tmp_path_factory.mktemp("whole")
    return do(two(), folder), metrics(folder)


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PEFTLIB_FIGURES", str(tmp_path / "figures"))
    return tmp_path


# --- kills: at every step of a write ---


def adapter(seed: int):
    model = randomise(adapted(pl.LoRA(), SAVANNA))
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad:
                tensor.add_(seed)
    return model


def picture(seed: int, side: int = 30) -> Figure:
    figure = Figure(figsize=(1, 1))
    figure.subplots().imshow(np.random.default_rng(seed).random((side, side, 3)))
    return figure


def write_it(kind: str, folder: Path, seed: int) -> None:
    """A file of a kind, which depends on a seed."""
    os.environ["PEFTLIB_FIGURES"] = str(folder)
    if kind == "row":
        write_row(folder / "ab.json", row("ab", wall_s=float(seed)))
    elif kind == "adapter":
        save_adapter(adapter(seed), folder / "a.safetensors")
    else:
        save_figure(picture(seed), "a", "quick")


@pytest.mark.parametrize("number", KILLS)
@pytest.mark.parametrize("kind", ["row", "adapter", "figure"])
def test_a_write_that_is_killed_at_any_step_leaves_the_old_file_or_the_new(kind, number, outputs, tmp_path):
    expected, folder = [], tmp_path / "folder"
    for seed in (1, 0):
        write_it(kind, folder, seed)
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


def fetch_slowly(url: str, path: Path, number: int) -> None:
    """Fetch, and end when more than half has come."""

    def audit(event, facts):
        if event == "socket.connect":

            def look():
                while not (part(path).is_file() and part(path).stat().st_size > len(DATA) // 2):
                    time.sleep(0.002)
                os.kill(os.getpid(), number)

            threading.Thread(target=look, daemon=True).start()

    sys.addaudithook(audit)
    download.CHUNK = 1 << 16
    fetch(url, path, CHECKSUM)


@pytest.mark.parametrize("number", KILLS)
def test_a_download_that_is_killed_goes_on(number, tmp_path):
    path = tmp_path / "data.zip"
    with serve() as served:
        served.files["/data.zip"], served.pause = DATA, 0.2
        assert in_child(fetch_slowly, served.url + "data.zip", path, number) == -number
        have = part(path).stat().st_size
        assert not path.exists() and len(DATA) // 2 < have < len(DATA)
        assert DATA.startswith(part(path).read_bytes())
        served.pause = 0
        fetch(served.url + "data.zip", path, CHECKSUM)
        assert path.read_bytes() == DATA and served.starts[-1] == have


# --- kills: grids and notebooks ---


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
    process = processes.Process(target=grid_in_a_pool, args=(tmp_path,))
    process.start()
    wait_for(lambda: list(tmp_path.glob("work/*/last.ckpt")))
    worker = int((tmp_path / "pid").read_text())
    assert not gone(worker)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == -number and not metrics(tmp_path)
    wait_for(lambda: gone(worker))


@pytest.mark.parametrize("number", KILLS)
def test_a_notebook_that_is_killed_leaves_the_former_copy_and_no_kernel(number, outputs):
    marker = outputs / "pid"
    cell = f"import os, time\nopen({str(marker)!r}, 'w').write(str(os.getpid()))\ntime.sleep(wait)"
    book = write_notebook(outputs / "a.ipynb", "wait: int = 0", cells=[cell])
    (made,) = run_notebooks([book])
    before = made.copy.read_bytes()
    marker.unlink()
    process = processes.Process(target=run_notebooks, args=([book], "quick", {"wait": "1000"}))
    process.start()
    wait_for(lambda: not process.is_alive() or (marker.is_file() and marker.read_text()))
    assert process.is_alive()
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode not in (0, None)
    wait_for(lambda: gone(int(marker.read_text())))
    assert made.copy.read_bytes() == before
    (again,) = run_notebooks([book], if_changed=True)
    assert not again.ran and not made.copy.with_suffix(".failed.ipynb").exists()


# --- a full disk ---


@pytest.fixture(params=DISKS)
def disk(request, tmp_path):
    with small_disk(tmp_path / "disk", request.param) as disk:
        yield disk


FULL = (errno.ENOSPC, errno.EFBIG)


def test_a_download_on_a_full_disk_says_so_and_goes_on(disk):
    path = disk.folder / "data.zip"
    with serve() as served:
        served.files["/data.zip"] = DATA
        with pytest.raises(OSError, match=r"make room and try again: it goes on.*data\.zip\.part") as full:
            fetch(served.url + "data.zip", path, CHECKSUM)
        have = part(path).stat().st_size
        assert full.value.errno in FULL and not path.exists() and 0 < have < len(DATA)
        disk.grow()
        fetch(served.url + "data.zip", path, CHECKSUM)
        assert path.read_bytes() == DATA and served.starts == [0, have]


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_a_full_disk_is_no_damaged_archive(name, tmp_path):
    for kind in DISKS[1:] if os.geteuid() else DISKS:
        archive = packed(tmp_path / name, {"a.bin": DATA})
        with small_disk(tmp_path / kind, kind) as disk:
            with pytest.raises(OSError, match=rf"no fault of .*{name}.*{kind}/data") as full:
                unpack(archive, disk.folder / "data")
            assert full.value.errno in FULL and not list(disk.folder.iterdir())
            disk.grow()
            assert (unpack(archive, disk.folder / "data") / "a.bin").read_bytes() == DATA


def written(kind: str, folder: Path, large: bool) -> None:
    """A file of a kind, small or more than the disk holds."""
    if kind == "row":
        write_row(folder / "ab.json", row("ab", device="x" * (len(DATA) if large else 9)))
    elif kind == "adapter":
        save_adapter(adapted(pl.LoRA(rank=16 if large else 1), SAVANNA), folder / "a.safetensors")
    elif kind == "checkpoint":
        state = {"weights": torch.zeros(len(DATA) if large else 9)}
        training.SafeFiles().save_checkpoint(state, folder / "last.ckpt")
    else:
        figure = picture(0, 400 if large else 3)
        figure.set_size_inches((6, 6) if large else (1, 1))
        save_figure(figure, "a", "quick")


@pytest.mark.parametrize("kind", ["row", "adapter", "checkpoint", "figure"])
def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_the_former(kind, disk, monkeypatch):
    monkeypatch.setenv("PEFTLIB_FIGURES", str(disk.folder))
    written(kind, disk.folder, large=False)
    before = files(disk.folder)
    name = {"row": "ab.json", "adapter": "a.safetensors", "checkpoint": "last.ckpt", "figure": "quick/a.png"}[kind]
    with pytest.raises(OSError, match=str(disk.folder / name)):
        written(kind, disk.folder, large=True)
    assert files(disk.folder) == before
    assert not [path for path in disk.folder.rglob(".*") if path.is_file()]
    disk.grow()
    written(kind, disk.folder, large=True)
    assert files(disk.folder) != before


def test_a_notebook_on_a_full_disk_says_so_and_can_be_run_again(disk, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PEFTLIB_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("PEFTLIB_RUNS", str(disk.folder))
    book = write_notebook(tmp_path / "a.ipynb", "size: int = 9", cells=["print('x' * size)"])
    copy = disk.folder / "quick" / "a.ipynb"
    copy.parent.mkdir()
    copy.write_text("the former")
    assert main(["run", str(book), "--set", "size=200000"]) == 1
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("error: ") and str(copy) in said and "Traceback" not in said
    assert [(path.name, path.read_text()) for path in copy.parent.iterdir()] == [("a.ipynb", "the former")]
    disk.grow()
    assert main(["run", str(book), "--set", "size=200000"]) == 0 and copy.stat().st_size > 200_000


@pytest.mark.parametrize("kind", DISKS)
def test_a_map_on_a_full_disk_is_no_map(kind, tmp_path):
    """GDAL closes such a file without an error."""
    write(tmp_path / "a.tif", size=(300, 300))
    mapper = Mapper(segmentation(), FILE_BANDS)
    classes = torch.randint(0, 254, (300, 300), dtype=torch.uint8).numpy()  # which deflate makes no smaller
    mapper.strips = lambda _: ((top, classes[top : top + 30]) for top in range(0, 300, 30))
    with small_disk(tmp_path / "disk", kind) as disk:
        with pytest.raises(OSError):
            mapper.write(tmp_path / "a.tif", disk.folder / "a.tif")
        assert not list(disk.folder.iterdir())
        disk.grow()
        mapper.write(tmp_path / "a.tif", disk.folder / "a.tif")
        with rasterio.open(disk.folder / "a.tif") as file:
            assert (file.read(1) == classes).all()


def test_a_run_goes_on_after_a_full_disk(tmp_path, monkeypatch):
    run, saves, save, epochs = toy(epochs=4), [], torch.save, []
    expected = do([run], tmp_path / "whole")

    def full(state, path):
        saves.append(path)
        if len(saves) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, path)

    start = training.Keeper.on_train_epoch_start
    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(
        training.Keeper,
        "on_train_epoch_start",
        lambda self, trainer, task: (epochs.append(trainer.current_epoch), start(self, trainer, task)),
    )
    found = do([run], tmp_path / "rows")
    assert found["status"].tolist() == ["failed"] and "No space left" in found["error"].iloc[0]
    assert f"work/{run.key}" in found["error"].iloc[0]
    assert_same(do([run], tmp_path / "rows"), expected)
    assert epochs == [0, 1, 2, 2, 3] and not list(tmp_path.glob("rows/work/*"))


# --- a read-only folder ---


def test_from_a_read_only_folder_everything_is_read(whole, data, tmp_path):
    torch.save(tiny_vit().state_dict(), data / "vit.pt")
    save_adapter(adapted(pl.LoRA(), SAVANNA), data / "a.safetensors")
    forget()
    with read_only(data):
        assert_same(do(two(), tmp_path), whole[0])
        assert pl.weights.load_state(data / "vit.pt") and load_adapter(tiny_vit(), data / "a.safetensors")
        with pytest.raises(OSError, match=r"Read-only|denied"):
            (data / "x").touch()
    (data / "vit.pt").unlink()


def test_what_must_write_into_a_read_only_folder_names_it(whole, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.setenv("PEFTLIB_FIGURES", str(folder))
    monkeypatch.setenv("PEFTLIB_RUNS", str(folder))
    archive = packed(tmp_path / "a.zip", {"a": b"1"})
    book = write_notebook(tmp_path / "a.ipynb", "size: int = 9", cells=["pass"])
    writes = [
        lambda: do(two(), folder),
        lambda: write_row(folder / "ab.json", row("ab")),
        lambda: save_adapter(adapted(pl.LoRA(), SAVANNA), folder / "a.safetensors"),
        lambda: save_figure(picture(0), "a", "quick"),
        lambda: unpack(archive, folder / "data"),
        lambda: run_notebooks([book]),
    ]
    with read_only(folder):
        for write_there in writes:
            with pytest.raises(OSError, match=str(folder)) as refused:
                write_there()
            assert refused.value.errno in (errno.EROFS, errno.EACCES)
        assert main(["run", str(book)]) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ") and str(folder) in said and "Traceback" not in said
    assert not list(folder.iterdir())


# --- two grids at once ---


def grid_beside(folder: Path, start) -> None:
    torch.set_num_threads(1)
    start.wait(300)
    table = do(grid(toy(epochs=6, method=pl.VPT(tokens=4, dropout=0.3, new_bands="mean")), seed=range(3)), folder)
    assert table["status"].unique().tolist() == ["done"]


def test_two_grids_in_one_folder_give_the_rows_of_one(tmp_path):
    runs = grid(toy(epochs=6, method=pl.VPT(tokens=4, dropout=0.3, new_bands="mean")), seed=range(3))
    expected = do(runs, tmp_path / "one")
    start = processes.Barrier(2)
    both = [processes.Process(target=grid_beside, args=(tmp_path / "two", start)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(300)
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
    first = processes.Process(target=perform_noting, args=(run, tmp_path / "rows", note, 1.0))
    first.start()
    wait_for(note.is_file)
    assert in_child(perform_noting, run, tmp_path / "rows", note, 0.0) == 0
    first.join(300)
    assert first.exitcode == 0 and note.read_text().split() == ["begin", "end"]


def test_a_claim_ends_with_its_process(whole, tmp_path):
    process = processes.Process(target=perform_noting, args=(two()[0], tmp_path, tmp_path / "note", 1000.0))
    process.start()
    wait_for((tmp_path / "note").is_file)
    process.kill()
    process.join(300)
    assert_same(do(two(), tmp_path), whole[0])


# --- clocks ---

TIMES = [86_400, 4_000_000_000]  # seconds of 1970, and of 2096


@pytest.mark.parametrize("then", TIMES)
def test_finished_runs_are_not_repeated_whatever_their_files_time(then, data, whole, tmp_path, monkeypatch):
    torch.save(tiny_vit().state_dict(), tmp_path / "vit.pt")
    do(two(), tmp_path / "rows", place=Place(accelerator="cpu", threads=1, keep=True))
    before = files(tmp_path)
    for path in [*tmp_path.rglob("*"), *data.rglob("*")]:
        os.utime(path, (then, then))
    forget()
    monkeypatch.setattr(trial, "_trained", lambda *_: pytest.fail("a finished run was repeated"))
    assert_same(do(two(), tmp_path / "rows", place=Place(accelerator="cpu", threads=1, keep=True)), whole[0])
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
def test_notebooks_are_rerun_for_what_changed_and_not_for_its_time(then, outputs, monkeypatch):
    monkeypatch.setenv("PEFTLIB_FIGURES", str(outputs / "figures"))
    cell = "import os, pathlib\nfolder = pathlib.Path(os.environ['PEFTLIB_FIGURES'], 'quick')\n"
    cell += "folder.mkdir(parents=True, exist_ok=True)\n(folder / 'a.png').write_bytes(b'png')"
    book = write_notebook(outputs / "a.ipynb", "profile: str = 'quick'", cells=[cell])
    (first,) = run_notebooks([book])
    assert len(first.figures) == 1
    for path in outputs.rglob("*"):
        os.utime(path, (then, then))
    assert not run_notebooks([book], if_changed=True)[0].ran
    write_notebook(book, "profile: str = 'quick'", cells=[cell + "\nprint('more')"])
    os.utime(book, (86_400, 86_400))  # changed, and older than its copy
    (again,) = run_notebooks([book], if_changed=True)
    assert again.ran and len(again.figures) == 1 and again.seconds > 0


def test_reference_numbers_are_replaced_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("peftlib.results.root", lambda: tmp_path)
    check_reference("a", {"x": 1.0}, "quick", 0.1, update=True)
    before = files(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        check_reference("a", {"x": 2.0}, "quick", 0.1, update=True)
    assert files(tmp_path) == before and before
