"""``docs/own_data.md``: its lines run, from files of foreign kinds to a map."""

import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
from helpers import tiny_vit
from rasterio.transform import from_origin

import peftlib as pl
from peftlib.training.predict import NO_CLASS

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "own_data.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
WHERE = {"crs": "EPSG:32633", "transform": from_origin(400_000, 5_800_000, 30, 30)}
draw = np.random.default_rng(0)


def write(path, channels, size, low=300, high=3000, dtype="uint16", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = dict(driver="PNG" if path.suffix == ".png" else "GTiff", count=channels, height=size[0], width=size[1])
    values = draw.integers(low, high, (channels, *size)).astype(dtype)
    with rasterio.open(
        path, "w", **facts | {"dtype": dtype} | ({} if path.suffix == ".png" else WHERE) | options
    ) as file:
        file.write(values)
    return values


def table(path, parts):
    path.write_text("\n".join(["file,split", *(f"{file},{part}" for file, part in parts)]))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Small folders of the kinds that the page names."""
    root = tmp_path_factory.mktemp("own")
    for i in range(6):
        write(root / f"water/images/{i}.tif", 12, (40, 40))
        mask = write(root / f"water/masks/mask_{i}.png", 1, (40, 40), 0, 2, "uint8")
        with rasterio.open(
            root / f"water/masks/mask_{i}.png", "w", driver="PNG", count=1, height=40, width=40, dtype="uint8"
        ) as f:
            f.write(mask * 255)
    table(root / "water/splits.csv", [(i, ("train", "train", "train", "val", "val", "test")[i]) for i in range(6)])
    for name, size in {"a": (97, 70), "b": (64, 64), "c": (40, 150), "d": (70, 90), "e": (66, 30)}.items():
        write(root / f"fires/images/{name}.tif", 5, size)
        write(root / f"fires/masks/{name}.tif", 1, size, 0, 2, "uint8")
    table(root / "fires/folds.csv", [(f"images/{name}.tif", i) for i, name in enumerate("abcde")])
    for i in range(6):
        write(root / f"chips/{('Forest', 'River')[i % 2]}/{i}.tif", 4, (32, 32))
    parts = [(f"{('Forest', 'River')[i % 2]}/{i}.tif", ("train", "val", "test")[i // 2]) for i in range(6)]
    table(root / "chips/splits.csv", parts)
    return root


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_lines_of_the_page_run(number, folders, monkeypatch):
    monkeypatch.chdir(folders)
    monkeypatch.setattr(pl, "load_backbone", lambda *_, **__: tiny_vit())
    code = EXAMPLES[number]
    assert len([line for line in code.splitlines() if line]) <= 12
    known: dict = {}
    exec(re.sub(r"steps=\d+", "steps=2", code), known)
    source, target = re.findall(r'"(\w+/[\w/]+\.tif)"', code)[-2:]
    with rasterio.open(source) as image, rasterio.open(target) as found:
        assert image.shape == found.shape and set(np.unique(found.read())) <= {0, 1, NO_CLASS}
    assert known["model"].reading["names"] == known["data"].train.how.names
