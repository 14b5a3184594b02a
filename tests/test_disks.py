"""Disks that are full or read-only: an error that names the file, the former file, and going on with room."""

import errno
import os
from pathlib import Path

import pytest
import rasterio
import torch
from faults import DATA, eurosat, files, picture, read_only, small_disk, two
from helpers import SAVANNA, adapted, tiny_vit
from test_download import packed
from test_predict import FILE_BANDS, write
from test_rows import row
from test_runner import write_notebook
from toy_data import segmentation
from toy_runs import assert_same, do, forget, toy

import peftlib as pl
from peftlib.__main__ import main
from peftlib.data.download import unpack
from peftlib.experiments.results import write_row
from peftlib.model.adapter_file import load_adapter, save_adapter
from peftlib.studies.notebooks import run_notebooks
from peftlib.studies.plots import save_figure
from peftlib.training import fit as training
from peftlib.training.predict import Mapper

DISKS = ["tmpfs", "limit"]
FULL = (errno.ENOSPC, errno.EFBIG)


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    with eurosat(tmp_path_factory.mktemp("data")) as root:
        yield root


# --- a full disk ---


@pytest.fixture(params=DISKS)
def disk(request, tmp_path):
    with small_disk(tmp_path / "disk", request.param) as disk:
        yield disk


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_a_full_disk_is_no_damaged_archive(name, tmp_path):
    for kind in DISKS[1:] if os.geteuid() else DISKS:
        archive = packed(tmp_path / name, {"a.bin": DATA})
        with small_disk(tmp_path / kind, kind) as disk:
            with pytest.raises(OSError, match=rf"unpacking .*{name}.*{kind}/data") as full:
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


def test_from_a_read_only_folder_everything_is_read(data, tmp_path):
    expected = do(two(), tmp_path / "whole")
    torch.save(tiny_vit().state_dict(), data / "vit.pt")
    save_adapter(adapted(pl.LoRA(), SAVANNA), data / "a.safetensors")
    forget()
    with read_only(data):
        assert_same(do(two(), tmp_path / "rows"), expected)
        assert pl.weights.load_state(data / "vit.pt") and load_adapter(tiny_vit(), data / "a.safetensors")
        with pytest.raises(OSError, match=r"Read-only|denied"):
            (data / "x").touch()
    (data / "vit.pt").unlink()


def test_what_must_write_into_a_read_only_folder_names_it(tmp_path, monkeypatch, capsys):
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
