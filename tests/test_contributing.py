"""A method and a data set, added in the way that CONTRIBUTING says, work everywhere at once."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from archives import write_tif
from helpers import adapted, images, pretrained_tokens, randomise, tiny_vit
from torch import nn
from toy_runs import do, toy

import peftlib as pl
from peftlib.data import DATASETS, EarthDataset, load
from peftlib.data.dataset import read_tif
from peftlib.methods.base import InputMethod, at_least


@dataclass(frozen=True)
class Gates(InputMethod):
    """A gate on every MLP's output: y = (1 + g) mlp(x), with g zero at the start.

    Attributes:
        groups: channels share a gate in so many groups.
    """

    name: ClassVar[str] = "gates"
    groups: int = 4

    def __post_init__(self):
        super().__post_init__()
        at_least(self, "groups", 1)

    def inject_blocks(self, vit) -> None:
        for block in vit.blocks:
            block.mlp = nn.Sequential(block.mlp, Gate(vit.embed_dim, self.groups))


class Gate(nn.Module):
    def __init__(self, dim: int, groups: int):
        super().__init__()
        self.g, self.repeats = nn.Parameter(torch.zeros(groups)), dim // groups

    def forward(self, x):
        return x * (1 + self.g.repeat_interleave(self.repeats))


class Shores(EarthDataset):
    """Two shores, of four bands."""

    name, folder, task = "shores", "shores", "classification"
    classes, sensor, all_bands = ("sand", "rock"), "sentinel2", ("B02", "B03", "B04", "B08")
    gsd, source, licence = 10.0, "https://shores.example", "CC0"

    def find(self) -> list:
        return sorted((self.root / self.split).glob("*.tif"))

    def read(self, path) -> dict:
        values, meta = read_tif(path)
        return {
            "image": values.float() / 10_000,
            "label": self.classes.index(path.stem.split("_")[0]),
            "meta": meta | {"source": str(path)},
        }


@pytest.fixture
def added(monkeypatch, tmp_path):
    monkeypatch.setitem(pl.METHODS, "gates", Gates)
    monkeypatch.setitem(DATASETS, "shores", Shores)
    monkeypatch.setenv("PEFTLIB_DATA", str(tmp_path))
    draw = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 4), ("test", 4)):
        for i in range(count):
            values = draw.integers(500, 1500, (4, 16, 16)).astype(np.uint16)
            values[3] += 2000 * (i % 2)
            write_tif(tmp_path / "shores" / split / f"{('sand', 'rock')[i % 2]}_{i}.tif", values)
    return tmp_path


def test_a_method_of_one_file_is_a_method(added, tmp_path):
    x = images()
    model = adapted(Gates())
    with torch.no_grad():
        assert torch.equal(model(x), pretrained_tokens(tiny_vit(), x))
    tuned = {name for name, p in model.named_parameters() if p.requires_grad}
    assert tuned == {f"vit.blocks.{i}.mlp.1.g" for i in range(3)} and pl.count_parameters(model)["tuned"] == 12
    randomise(model)
    pl.save_adapter(model, tmp_path / "gates.safetensors")
    again = pl.load_adapter(tiny_vit(), tmp_path / "gates.safetensors")
    assert again.method == Gates() and torch.equal(again(x), model(x))
    with pytest.raises(ValueError, match="does more than a plain ViT can: blocks"):
        pl.merge(model)
    with pytest.raises(ValueError, match=r"Gates\(groups=0\); it must be an int of at least 1"):
        Gates(groups=0)


def test_a_data_set_of_one_file_is_a_data_set(added):
    data = load("shores", split="val", bands=("B08", "B04", "B03", "B02"))
    sample = data[1]
    assert sample["image"].shape == (4, 16, 16) and sample["label"] == 1 and sample["bands"][0] == "B08"
    assert sample["image"][0].mean() > 0.2 > sample["image"][1].mean()
    with pytest.raises(FileNotFoundError, match=r"shores\.example"):
        load("shores", root=added / "elsewhere")


def test_the_grid_takes_both_by_name(added, tmp_path):
    runs = [
        toy(dataset="shores", method=method, epochs=3, lr=1e-2) for method in (Gates(new_bands="mean"), pl.Deflect())
    ]
    rows = do(runs, tmp_path / "rows")
    assert rows["status"].eq("done").all() and set(rows["method"]) == {"gates", "deflect"}
    assert set(rows["split"]) == {"val", "test"} and np.isfinite(rows["value"]).all()
