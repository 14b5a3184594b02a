"""Examples of README and docs run as written; the YAML names what exists (``tests/with_terratorch`` trains with it)."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from test_predict import read, write

import peftlib as pl
from peftlib.data import load

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ELSEWHERE = ("training.md", "own_data.md")  # whose examples have tests of their own
OTHERS = [path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in ELSEWHERE]
PAGES = "\n".join([README, *(path.read_text() for path in OTHERS)])
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGES, re.DOTALL)


def example(word: str) -> str:
    """The one example that has a word in it."""
    (code,) = [code for code in EXAMPLES if word in code]
    return code


def test_every_example_runs_in_a_test():
    words = ("save_adapter", "pl.transfer", "series_bands", "import peft\n", "EarthData", "execute(")
    assert sorted(EXAMPLES) == sorted(map(example, words))


@pytest.mark.weights
def test_the_first_example_and_those_that_continue_it(tmp_path, monkeypatch, dinov2):
    monkeypatch.chdir(tmp_path)
    images = torch.rand(2, 6, 126, 126) * 0.4
    scope = {"loader": [(images, torch.tensor([0, 2]))] * 2, "classes": 3}
    exec(example("save_adapter"), scope)
    saved = pl.load_adapter(scope["vit"], "adapter.safetensors")
    with torch.no_grad():
        assert torch.equal(saved(images), scope["model"](images))

    exec(example("pl.transfer"), scope)
    with torch.no_grad():
        assert scope["landsat"](images).shape == scope["model"](images).shape
    assert scope["landsat"].bands.sensor == "landsat8"

    dates = torch.rand(3, 6, 126, 126) * 0.4
    dates[1, :, :60] = torch.nan
    exec(example("series_bands"), scope | {"images": dates, "days": (98, 161, 230), "vit": dinov2})
    exec(example("import peft\n"), peft := {"pl": pl, "bands": scope["bands"]})
    with torch.no_grad():
        plain = peft["plain"].forward_features(peft["model"].normalize(images))
        torch.testing.assert_close(plain, peft["model"](images), rtol=1e-4, atol=1e-4)


@pytest.mark.weights
def test_the_training_example_trains_restores_and_predicts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train = load("spectral_scenes", split="train", length=1, size=56)
    write(Path("scene.tif"), (70, 60), bands=len(train.bands))
    exec(example("EarthData"), scope := {"pl": pl})
    *epochs, score = capsys.readouterr().out.splitlines()
    x = scope["data"].test[0]["image"][None]
    assert [line.split(",")[0] for line in epochs] == ["epoch 1", "epoch 2"] and 0 <= float(score) <= 1
    with torch.no_grad():  # what was trained comes back
        assert torch.equal(scope["fresh"](x), scope["model"](x))
    assert np.unique(read(Path("map.tif"))[0]).max() < len(train.classes)


@pytest.mark.weights
@pytest.mark.slow
def test_the_experiment_example_does_its_runs_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTLIB_RUNS", str(tmp_path))
    exec(example("execute("), {"pl": pl})
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").glob("*.json")}
    exec(example("execute("), {"pl": pl})
    assert made and all(path.stat().st_mtime_ns == stamp for path, stamp in made.items())


def test_the_yaml_names_a_backbone_and_options_that_exist():
    config = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGES, re.DOTALL)[1])
    options = config["model"]["init_args"]["model_args"]
    _, method, backbone = options["backbone"].split("_", 2)
    assert backbone in pl.BACKBONES
    chosen = {name.removeprefix("backbone_"): v for name, v in options.items() if name.startswith("backbone_")}
    pl.METHODS[method].from_options({name: v for name, v in chosen.items() if name not in ("bands", "image_size")})


def test_the_table_of_costs_is_computed():
    with torch.device("meta"):
        vit = pl.load_backbone("scalemae_large", weights="random")
    for config, costs in pl.cost_table(vit, tuple(pl.SENSORS["sentinel2"]), image_size=224).iterrows():
        (row,) = [line for line in PAGES.splitlines() if line.startswith(f"| `pl.{config}` | ")]
        size, step = f"{costs['adapter_bytes'] / 1e6:.1f} MB", f"{costs['step_gflops']:.0f} GFLOP"
        assert row.endswith(f"| {costs['percent']:.2f}% | {size} | {step} |"), config


def test_findings_are_what_notebook_05_prints():
    cells = json.loads((ROOT / "notebooks" / "05_figures.ipynb").read_text())["cells"]
    printed = ["".join(out["text"]) for cell in cells for out in cell.get("outputs", []) if out.get("name") == "stdout"]
    assert "/quick/05_grid.png" in (ROOT / "Makefile").read_text() and "figures/quick/05_grid.png" in README
    assert all(f"```text\n{text.rstrip()}\n```" in README for text in printed[:2])  # the contrasts, and the advice


def test_readme_fits_a_screen_and_a_half():
    assert len(README.splitlines()) <= 130
