"""Damaged and hostile files: a clear error (ValueError or OSError), or the right result."""

import io
import os
import shutil
import tarfile
import warnings
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pytest
import rasterio
import torch
from archives import write_sample, write_tif
from damage import CLEAR, damaged, survives
from helpers import SAVANNA, adapted, images, randomise, tiny_vit
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import peftlib as pl
from peftlib.data import from_folder
from peftlib.data.dataset import read_tif
from peftlib.data.download import unpack
from peftlib.data.readers.geobench import read_sample
from peftlib.experiments.results import RUN_COLUMNS, read_row, read_study, tables, write_row, write_study
from peftlib.files import load_state
from peftlib.studies.notebooks import convert, declared_parameters
from peftlib.training.fit import Reseed, read_checkpoint

EACH = pytest.mark.parametrize("numbers", [range(40), pytest.param(range(40, 250), marks=pytest.mark.slow)], ids=len)
ROW = {"key": "ab12", "status": "done", "metrics": {"val": {"miou": 0.512}}}


def check(path: Path, numbers: range, read, right) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong = survives(path, path.read_bytes(), numbers, read, right)
    assert not wrong, f"{len(wrong)} of {len(numbers)}: {dict(list(wrong.items())[:5])}"


def same_state(state: dict, other: dict) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


# --- files of ours: a changed bit is an error ---


@EACH
def test_adapters(numbers, tmp_path):
    model = randomise(adapted(pl.LoRA(rank=1), SAVANNA)).eval()
    path, x = pl.save_adapter(model, tmp_path / "a.safetensors"), images(SAVANNA)
    expected, vit = model(x), tiny_vit()
    check(path, numbers, lambda path: pl.load_adapter(vit, path)(x), lambda tokens: torch.equal(tokens, expected))


@EACH
def test_weights(numbers, tmp_path):
    state = {"a": torch.randn(3, 5), "b": torch.arange(7.0)}
    torch.save(state, path := tmp_path / "w.pt")
    check(path, numbers, load_state, lambda found: same_state(found, state))
    save_file(state, path := tmp_path / "w.safetensors")  # has no checksum: its numbers are taken as they are
    check(path, numbers, load_state, lambda found: all(isinstance(v, torch.Tensor) for v in found.values()))


@EACH
def test_checkpoints(numbers, tmp_path):
    checkpoint = {"callbacks": {Reseed.__name__: {}}, "state_dict": {"a": torch.randn(4, 4)}, "epoch": 3}
    torch.save(checkpoint, path := tmp_path / "last.ckpt")
    check(path, numbers, read_checkpoint, lambda found: isinstance(found["callbacks"], dict))


@EACH
def test_result_rows_and_tables(numbers, tmp_path):
    experiment = {name: 0 for name in RUN_COLUMNS} | {"dataset": "x", "input_options": {}, "options": {}}
    write_row(path := tmp_path / "ab12.json", ROW | {"experiment": experiment})
    check(path, numbers, read_row, lambda found: found is None or found["key"] == "ab12")
    write_study(*tables([read_row(path)]), folder := tmp_path / "study")
    for name in ("runs.csv", "metrics.csv"):  # a CSV has no checksum: version control has
        check(folder / name, numbers, lambda _: read_study(folder), lambda found: list(found[0]) == list(RUN_COLUMNS))


# --- files of others ---


@EACH
def test_images_and_labels(numbers, tmp_path):
    values = np.random.default_rng(0).integers(0, 3000, (4, 16, 16)).astype(np.uint16)
    write_tif(path := tmp_path / "chips" / "a.tif", values)
    labels = tmp_path / "labels.csv"
    labels.write_text("file,label\na.tif,field\n")

    def read(_):
        return from_folder(path.parent, SAVANNA, ("forest", "field"), labels)[0]

    # GeoTIFFs have no checksum: size, bands and range are what can be looked at
    check(path, numbers, read, lambda sample: sample["image"].shape[:1] == (4,) and sample["label"] == 1)
    check(labels, numbers, read, lambda sample: sample["label"] in (0, 1))


def test_samples_of_geobench_that_were_cut_short(tmp_path):
    """No other damage: HDF5 has no checksums, and its library may search a damaged heap forever."""
    write_sample(path := tmp_path / "a.hdf5", {"04 - Red": np.arange(36, dtype=np.int16).reshape(6, 6)}, label=3)
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:length])
        with pytest.raises(CLEAR):
            read_sample(path)


def test_a_header_that_promises_billions_of_pixels_is_refused(tmp_path):
    path = tmp_path / "huge.tif"
    shape = dict(count=1, height=2**16, width=2**16, dtype="uint16", tiled=True, sparse_ok=True)
    with rasterio.open(path, "w", driver="GTiff", **shape):
        pass
    assert path.stat().st_size < 2**21
    with pytest.raises(ValueError, match=r"huge.tif has 4,294,967,296 values"):
        read_tif(path)


# --- hostile files ---


class Bomb:
    """What runs a command when it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("read", [load_state, read_checkpoint, lambda path: pl.load_backbone("dinov2_small", path)])
def test_code_in_pickles_is_not_run(read, tmp_path):
    torch.save({"callbacks": Bomb(f"touch {tmp_path / 'ran'}"), "a": torch.zeros(1)}, path := tmp_path / "w.pt")
    with pytest.raises(CLEAR):
        read(path)
    assert not (tmp_path / "ran").exists()


def packed(path: Path, member: tarfile.TarInfo, content: bytes = b"") -> Path:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(member.name, content)
    else:
        member.size = len(content)
        with tarfile.open(path, "w:gz") as file:
            file.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/peftlib_fuzz_out.txt", "a/../../out.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_write_nothing_outside(kind, name, tmp_path):
    path = packed(tmp_path / "in" / f"a.{kind}", tarfile.TarInfo(name), b"out")
    with pytest.raises(ValueError, match="lead out of its folder"):
        unpack(path, tmp_path / "in" / "folder")
    assert sorted(p.name for p in tmp_path.rglob("*")) == [f"a.{kind}", "in"]
    assert not Path("/tmp/peftlib_fuzz_out.txt").exists()


@pytest.mark.parametrize("target", ["/etc", "../.."])
def test_links_out_of_an_archive_are_refused(target, tmp_path):
    member = tarfile.TarInfo("link")
    member.type, member.linkname = tarfile.SYMTYPE, target
    with pytest.raises(ValueError, match="cannot be unpacked"):
        unpack(packed(tmp_path / "a.tar", member), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@EACH
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_damaged_archives(kind, numbers, tmp_path):
    content = bytes(range(256)) * 8
    path = packed(tmp_path / "in" / f"a.{kind}", tarfile.TarInfo("folder/file"), content)

    def read(path: Path) -> list[bytes]:
        shutil.rmtree(path.parent / "out", ignore_errors=True)
        return [file.read_bytes() for file in sorted(unpack(path, path.parent / "out").rglob("*")) if file.is_file()]

    # a zip has checksums of its files; a tar is unpacked once the hash of its download was found right
    check(path, numbers, read, lambda found: kind == "tar" or found in ([content], []))
    assert {p.name for p in tmp_path.iterdir()} == {"in"}  # nothing was written elsewhere


# --- notebooks and their parameters ---


@EACH
def test_notebooks(numbers, tmp_path):
    cell = nbformat.v4.new_code_cell('profile: str = "quick"\nseed: int = 0', metadata={"tags": ["parameters"]})
    document = nbformat.v4.new_notebook(cells=[cell])
    document.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(document, path := tmp_path / "n.ipynb")
    check(path, numbers, declared_parameters, lambda found: all(isinstance(name, str) for name in found))


@given(st.text(max_size=30), st.sampled_from(["int", "float", "bool", "list[int]"]))
def test_values_of_parameters(text, kind):
    try:
        value = convert("it", kind, text)
    except ValueError:
        return
    assert type(value).__name__ == kind.partition("[")[0]


def test_damage_is_damage():
    whole = bytes(range(256)) * 4
    assert sum(damaged(whole, number) != whole for number in range(200)) > 190
    assert damaged(whole, 5) == damaged(whole, 5)
