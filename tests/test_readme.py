"""What README says is true: its example runs, its parameter table is computed, its commands exist."""

import re
from pathlib import Path

import pytest
import torch

import peftlib as pl

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.weights
def test_example_runs_as_written(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    batches = [(torch.rand(2, 6, 126, 126) * 0.4, torch.tensor([0, 2])) for _ in range(2)]
    scope = {"loader": batches, "classes": 3}
    exec(code, scope)
    saved = pl.load_adapter(scope["vit"], "adapter.safetensors")
    with torch.no_grad():
        assert torch.equal(saved(batches[0][0]), scope["model"](batches[0][0]))


def test_parameter_table_is_computed():
    with torch.device("meta"):
        vit = pl.load_backbone("scalemae_large", weights="random")
    rows = re.findall(r"^\| `pl\.(\w+)\(\)` \|.*\| ([\d.]+)% \|$", README, re.MULTILINE)
    assert {name for name, _ in rows} == {config.__name__ for config in pl.METHODS.values()}
    for name, printed in rows:
        method = getattr(pl, name)()
        bands = tuple(pl.SENSORS["sentinel2"]) if method.name == "deflect" else ("B04", "B03", "B02")
        percent = pl.count_parameters(pl.adapt(vit, method, bands=bands))["percent"]
        assert f"{percent:.2f}" == printed, (name, percent)


def test_named_files_and_commands_exist():
    for target in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"`make (\w+)`", README) + re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), command
