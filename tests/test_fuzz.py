"""Damaged and hostile files: a clear error (ValueError or OSError), or the right result."""

import os
import random
import warnings
from pathlib import Path

import nbformat
import numpy as np
import pytest
import rasterio
import torch
from archives import write_tif
from helpers import SAVANNA, adapted, images, randomise, tiny_vit
from safetensors.torch import save_file

import peftlib as pl
from peftlib.data import from_folder
from peftlib.data.dataset import read_tif
from peftlib.experiments.results import RUN_COLUMNS, read_row, read_study, tables, write_row, write_study
from peftlib.files import load_state
from peftlib.studies.notebooks import declared_parameters
from peftlib.training.fit import Reseed, read_checkpoint

CLEAR = (ValueError, OSError)  # with what is derived from them, such as FileNotFoundError


def damaged(whole: bytes, number: int) -> bytes:
    """One of many damages: cut short, bytes flipped, blocks swapped, zeroed, repeated, pushed in; or no byte left."""
    draw = random.Random(number)
    data, length = bytearray(whole), len(whole)
    a, b = sorted(draw.randrange(length) for _ in range(2))
    kind = draw.randrange(7)
    if kind == 0:
        return bytes(data[:a])
    if kind <= 2:
        for _ in range(draw.choice((1, 1, 2, 8))):
            data[draw.randrange(length if kind == 1 else min(length, 512))] ^= 1 << draw.randrange(8)
    elif kind == 3:
        size = min(64, length - b, b - a)
        data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    elif kind == 4:
        data[a:b] = bytes(b - a)
    else:
        data[a:a] = data[a:b] if kind == 5 else draw.randbytes(draw.choice((1, 4, 300)))
    return bytes(data)


# --- kinds of files: each writes one, and says how to read it and what may come of a damaged one ---


def adapter(folder: Path):
    model, x, vit = randomise(adapted(pl.LoRA(rank=1), SAVANNA)).eval(), images(SAVANNA), tiny_vit()
    path, expected = pl.save_adapter(model, folder / "a.safetensors"), model(x)
    return path, lambda: pl.load_adapter(vit, path)(x), lambda tokens: torch.equal(tokens, expected)


def safetensors(folder: Path):  # without checksum: its numbers are taken as they are
    save_file({"a": torch.randn(3, 5)}, path := folder / "w.safetensors")
    return path, lambda: load_state(path), lambda found: all(isinstance(v, torch.Tensor) for v in found.values())


def checkpoint(folder: Path):
    torch.save({"callbacks": {Reseed.__name__: {}}, "state_dict": {"a": torch.randn(4, 4)}}, path := folder / "l.ckpt")
    return path, lambda: read_checkpoint(path), lambda found: isinstance(found["callbacks"], dict)


def row(folder: Path):
    experiment = dict.fromkeys(RUN_COLUMNS, 0) | {"dataset": "x", "input_options": {}, "options": {}}
    facts = {"key": "ab12", "status": "done", "metrics": {"val": {"miou": 0.512}}, "experiment": experiment}
    write_row(path := folder / "ab12.json", facts)
    return path, lambda: read_row(path), lambda found: found is None or found["key"] == "ab12"


def table(folder: Path):  # a CSV has no checksum: version control has
    write_study(*tables([read_row(row(folder)[0])]), folder / "study")
    path = folder / "study" / "runs.csv"
    return path, lambda: read_study(path.parent), lambda found: list(found[0]) == list(RUN_COLUMNS)


def geotiff(folder: Path):  # no checksum: size, bands and range are what can be looked at
    values = np.random.default_rng(0).integers(0, 3000, (4, 16, 16)).astype(np.uint16)
    write_tif(path := folder / "chips" / "a.tif", values)
    (labels := folder / "labels.csv").write_text("file,label\na.tif,field\n")
    read = lambda: from_folder(path.parent, SAVANNA, ("forest", "field"), labels)[0]  # noqa: E731
    return path, read, lambda sample: sample["image"].shape[:1] == (4,) and sample["label"] in (0, 1)


def notebook(folder: Path):
    cell = nbformat.v4.new_code_cell('profile: str = "quick"\nseed: int = 0', metadata={"tags": ["parameters"]})
    document = nbformat.v4.new_notebook(cells=[cell])
    document.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(document, path := folder / "n.ipynb")
    return path, lambda: declared_parameters(path), lambda found: all(isinstance(name, str) for name in found)


KINDS = (adapter, safetensors, checkpoint, row, table, geotiff, notebook)
EACH = [range(40), pytest.param(range(40, 250), marks=pytest.mark.slow)]


@pytest.mark.parametrize("numbers", EACH, ids=["40", "250"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files(kind, numbers, tmp_path):
    path, read, right = kind(tmp_path)
    assert right(read())
    whole, wrong = path.read_bytes(), {}
    assert sum(damaged(whole, number) != whole for number in numbers) > 0.9 * len(numbers)
    for number in numbers:
        path.write_bytes(damaged(whole, number))
        try:
            if not right(read()):
                wrong[number] = "another result in silence"
        except CLEAR:
            continue
        except BaseException as error:
            wrong[number] = f"{type(error).__name__}: {error}"[:200]
    assert not wrong


# --- hostile files ---


def test_a_header_that_promises_billions_of_pixels_is_refused(tmp_path):
    shape = dict(count=1, height=2**16, width=2**16, dtype="uint16", tiled=True, sparse_ok=True)
    with warnings.catch_warnings(action="ignore"), rasterio.open(tmp_path / "huge.tif", "w", driver="GTiff", **shape):
        pass
    with pytest.raises(ValueError, match=r"huge.tif has 4,294,967,296 values"):
        read_tif(tmp_path / "huge.tif")


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
