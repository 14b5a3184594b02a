"""Examples of README and docs run as written; the YAML names what exists (``tests/with_terratorch`` trains with it)."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

import peftlib as pl

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = "\n".join([README, *(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))])
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
def test_the_training_example_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(example("EarthData"), {"pl": pl})
    assert 0 <= float(capsys.readouterr().out.splitlines()[-1]) <= 1


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
    assert all(f"```text\n{text.rstrip()}\n```" in README for text in printed[:2])  # the contrasts, and the advice


def test_readme_fits_a_screen_and_a_half():
    assert len(README.splitlines()) <= 130
