"""Damaged and hostile files: a clear error (ValueError or OSError), or the right result. Cases are counted."""

import io
import json
import os
import shutil
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from archives import write_tif
from damage import CLEAR, damaged, survives
from helpers import SAVANNA, adapted, images, randomise, tiny_vit
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import peftlib as pl
from peftlib.data import from_folder
from peftlib.data.dataset import read_tif
from peftlib.data.download import unpack
from peftlib.experiments.results import read_row, read_table, write_row
from peftlib.files import load_state
from peftlib.studies.notebooks import declared_parameters, read_parameters
from peftlib.training.fit import Keeper, SafeFiles, read_checkpoint

CASES: dict[str, int] = {}
EACH = 250


@pytest.fixture(scope="module", autouse=True)
def counted():
    yield
    print(f"\nfuzz: {sum(CASES.values())} cases: {CASES}")


def check(kind: str, path: Path, read, right, count: int = EACH) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong = survives(path, path.read_bytes(), range(count), read, right)
    CASES[kind] = CASES.get(kind, 0) + count
    assert not wrong, f"{len(wrong)} of {count}: {dict(list(wrong.items())[:5])}"


def same_state(state: dict, other: dict) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


# --- files of ours: a changed bit is an error ---


def test_adapters(tmp_path):
    model = randomise(adapted(pl.LoRA(rank=1), SAVANNA)).eval()
    path, x = pl.save_adapter(model, tmp_path / "a.safetensors"), images(SAVANNA)
    expected, vit = model(x), tiny_vit()
    check("adapter", path, lambda path: pl.load_adapter(vit, path)(x), lambda tokens: torch.equal(tokens, expected))


def test_weights(tmp_path):
    state = {"a": torch.randn(3, 5), "b": torch.arange(7.0)}
    torch.save(state, path := tmp_path / "w.pt")
    check("weights .pt", path, load_state, lambda found: same_state(found, state))
    save_file(state, path := tmp_path / "w.safetensors")  # has no checksum: its numbers are taken as they are
    check(
        "weights .safetensors", path, load_state, lambda found: all(isinstance(v, torch.Tensor) for v in found.values())
    )


def test_checkpoints(tmp_path):
    checkpoint = {"callbacks": {Keeper.__name__: {"epoch": 3}}, "state_dict": {"a": torch.randn(4, 4)}, "epoch": 3}
    SafeFiles().save_checkpoint(checkpoint, path := tmp_path / "last.ckpt")

    def right(found: dict) -> bool:
        return same_state(found["state_dict"], checkpoint["state_dict"]) and found["epoch"] == 3

    check("checkpoint", path, read_checkpoint, right)


def test_result_rows(tmp_path):
    row = {"key": "ab12", "run": {"dataset": "x", "lr": 0.001}, "status": "done", "metrics": {"val": {"miou": 0.512}}}
    write_row(path := tmp_path / "ab12.json", row)
    assert read_row(path) == row
    check("result row", path, read_row, lambda found: found is None or found == row)


def test_tables(tmp_path):
    table = read_table("quick")[:40]
    table.to_csv(path := tmp_path / "rows.csv", index=False)
    columns = set(table.columns)  # a CSV has no checksum either: version control has
    check("result table", path, read_table, lambda found: columns <= set(found.columns), count=100)


# --- files of others ---


def test_images(tmp_path):
    values = np.random.default_rng(0).integers(0, 3000, (4, 16, 16)).astype(np.uint16)
    write_tif(path := tmp_path / "chips" / "a.tif", values)
    (tmp_path / "labels.csv").write_text("file,label\na.tif,field\n")
    data = from_folder(path.parent, ("B02", "B03", "B04", "B08"), ("forest", "field"), tmp_path / "labels.csv")

    def right(sample: dict) -> bool:  # GeoTIFFs have no checksum: size, bands and range are what can be looked at
        return tuple(sample["image"].shape[:1]) == (4,) and sample["label"] == 1

    check("GeoTIFF", path, lambda _: data[0], right)

    def read_labels(path: Path):
        return from_folder(tmp_path / "chips", SAVANNA, ("forest", "field"), path).items

    check("labels", tmp_path / "labels.csv", read_labels, lambda items: {number for _, number in items} <= {0, 1})


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
    CASES["hostile"] = CASES.get("hostile", 0) + 1


def zipped(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content)
    return path


def tarred(path: Path, member: tarfile.TarInfo, content: bytes = b"") -> Path:
    with tarfile.open(path, "w:gz") as file:
        file.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/peftlib_fuzz_out.txt", "a/../../out.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_write_nothing_outside(kind, name, tmp_path):
    member = tarfile.TarInfo(name)
    member.size = 3
    path = tmp_path / "in" / f"a.{kind}"
    path.parent.mkdir()
    zipped(path, name, b"out") if kind == "zip" else tarred(path, member, b"out")
    with pytest.raises(ValueError, match="lead out of its folder"):
        unpack(path, tmp_path / "in" / "folder")
    assert sorted(p.name for p in tmp_path.rglob("*")) == [f"a.{kind}", "in"]
    assert not Path("/tmp/peftlib_fuzz_out.txt").exists()
    CASES["hostile"] = CASES.get("hostile", 0) + 1


@pytest.mark.parametrize("target", ["/etc", "../.."])
def test_links_out_of_an_archive_are_refused(target, tmp_path):
    member = tarfile.TarInfo("link")
    member.type, member.linkname = tarfile.SYMTYPE, target
    with pytest.raises(ValueError, match="cannot be unpacked"):
        unpack(tarred(tmp_path / "a.tar", member), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    CASES["hostile"] = CASES.get("hostile", 0) + 1


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_damaged_archives(kind, tmp_path):
    content = bytes(range(256)) * 8
    member = tarfile.TarInfo("folder/file")
    member.size = len(content)
    path = tmp_path / "in" / f"a.{kind}"
    path.parent.mkdir()
    zipped(path, "folder/file", content) if kind == "zip" else tarred(path, member, content)

    def read(path: Path) -> list[bytes]:
        shutil.rmtree(path.parent / "out", ignore_errors=True)
        return [file.read_bytes() for file in sorted(unpack(path, path.parent / "out").rglob("*")) if file.is_file()]

    check(f"{kind} archive", path, read, lambda found: found in ([content], []))
    assert {p.name for p in tmp_path.iterdir()} == {"in"}  # nothing was written elsewhere


# --- notebooks and their parameters ---


def test_notebooks(tmp_path):
    cell = {
        "cell_type": "code",
        "metadata": {"tags": ["parameters"]},
        "source": 'profile: str = "quick"\nseed: int = 0',
    }
    (path := tmp_path / "n.ipynb").write_text(json.dumps({"cells": [cell], "nbformat": 4}))
    check("notebook", path, declared_parameters, lambda found: all(isinstance(name, str) for name in found))


@settings(max_examples=EACH)
@given(
    st.text(max_size=30),
    st.sampled_from(["rank: int = 4", "lr: float = 1e-3", "on: bool = True", "l: list[int] = [1]"]),
)
def test_values_of_parameters(text, line):
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": line}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "n.ipynb"
        path.write_text(json.dumps({"cells": [cell], "nbformat": 4}))
        name, kind = line.split(" =")[0].split(": ")
        CASES["parameter"] = CASES.get("parameter", 0) + 1
        try:
            value = read_parameters(path, "quick", {name: text})[name]
        except ValueError:
            return
    wanted = {"int": int, "float": float, "bool": bool, "list[int]": list}[kind]
    assert type(value) is wanted


def test_damage_is_damage():
    whole = bytes(range(256)) * 4
    assert sum(damaged(whole, number) != whole for number in range(200)) > 190
    assert damaged(whole, 5) == damaged(whole, 5)


def test_there_were_two_thousand_cases():
    if len(CASES) > 10:  # else only some of the tests ran
        assert sum(CASES.values()) >= 2000, CASES
