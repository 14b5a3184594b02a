"""Examples in docstrings run. Where one is about data of the reader's own, or hours of work, small ones stand in."""

import ast
import importlib
import inspect
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from archives import write_tif
from helpers import SAVANNA, tiny_vit
from toy_runs import toy, write_eurosat

import peftlib as pl
from peftlib import data as datasets
from peftlib.experiments import results
from peftlib.studies import comparison as study

PACKAGE = Path(pl.__file__).parent


def examples() -> dict[str, str]:
    """Module, or module.name -> the code in its docstring."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                name = module if isinstance(node, ast.Module) else f"{module}.{node.name}"
                code = [part for part in paragraphs(ast.get_docstring(node) or "") if is_code(part)]
                if code:
                    found[name] = "\n".join(code)
    return found


def paragraphs(text: str) -> list[str]:
    """Of a docstring, and of those that end in a line before code, the code."""
    parts = [textwrap.dedent(part).strip() for part in text.split("\n\n")]
    return parts + [textwrap.dedent(part.split("\n", 1)[1]) for part in parts if "\n" in part]


def is_code(text: str) -> bool:
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return False
    calls = [n for n in body if isinstance(n, ast.Assign | ast.Expr) and isinstance(n.value, ast.Call)]
    return bool(calls) and all(isinstance(n, ast.Assign | ast.Expr | ast.Import | ast.ImportFrom) for n in body)


def chips(folder: Path) -> dict:
    """A folder of the reader's own."""
    (folder / "chips").mkdir()
    lines = ["file,label"]
    for i, label in enumerate(("forest", "field", "forest")):
        write_tif(folder / "chips" / f"{i}.tif", np.full((4, 32, 32), 900 + i, np.uint16))
        lines.append(f"{i}.tif,{label}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return {}


def eurosat(folder: Path) -> dict:
    write_eurosat(folder)
    vit = tiny_vit(img_size=64)
    return {"EuroSAT": datasets.EuroSAT, "model": pl.adapt(vit, pl.Deflect(), datasets.EuroSAT("train").bands)}


def small_grid(folder: Path) -> dict:
    """Six runs of the example, of one epoch of a tiny model."""
    from dataclasses import replace

    write_eurosat(folder)
    few = toy()
    changes = dict(backbone=few.backbone, weights=few.weights, image_size=few.image_size, epochs=1, batch_size=8)
    experiments = importlib.import_module("peftlib.experiments.grid")

    def execute(runs, executor):
        runs = [replace(run, **changes, folds=0) for run in runs]
        with executor:
            return experiments.execute(runs[:2], executor, folder / "rows", progress=False)

    return {"Run": experiments.Run, "pl": pl, "execute": execute}


def committed(name: str):
    """An ``execute`` that finds what was done before."""
    return lambda folder: {"execute": lambda runs, known=None: results.read_table(name)}


def decoders(folder: Path) -> dict:
    (setting,) = study.settings("quick")
    best = study.chosen(results.read_table("quick"), setting, ("frozen", "full", "lora", "deflect"))
    rows = results.read_table("decoders")
    return {"execute": lambda runs, known: rows, "setting": setting, "best": best, "read_table": results.read_table}


def fields(folder: Path) -> dict:
    images = [(torch.rand(4, 4, 32, 32) * 0.4 + 0.01, (100, 160, 220, 280)) for _ in range(2)]
    return {"fields": images, "bands": SAVANNA, "vit": tiny_vit(), "pl": pl}


# What stands in for the reader's own; of ``bench``, whose race takes minutes, one of two tiny models.
CONTEXTS = {
    "__init__": lambda folder: {},
    "bench": lambda folder: {
        "bench": lambda name, image_size, batch_size: importlib.import_module("peftlib.studies.bench").bench(
            "test_vit", 32, 2, ("frozen", "lora"), 1, "cpu", progress=False
        )
    },
    "datasets.folder.from_folder": chips,
    "datasets.module.EarthData": eurosat,
    "decoder_study": decoders,
    "experiments": small_grid,
    "methods.hf_peft.HFPeft": lambda folder: {"pl": pl, "peft": importlib.import_module("peft")},
    "regions_study": committed("regions"),
    "scoring": lambda folder: {"results": results},
    "series": fields,
    "series_study": committed("series"),
    "tables": lambda folder: {"results": results, "tables": importlib.import_module("peftlib.studies.tables")},
}
# Needs the published files of a data set that no program fetches.
ON_PAPER = {"datasets"}


def test_every_example_is_known():
    assert set(examples()) == set(CONTEXTS) | ON_PAPER


@pytest.mark.parametrize("name", CONTEXTS)
def test_an_example_runs_as_written(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PEFTLIB_DATA", str(tmp_path))
    code = examples()[name]
    module = "peftlib" if name == "__init__" else f"peftlib.{name}"
    try:
        names = dict(vars(importlib.import_module(module)))
    except ModuleNotFoundError:  # a class or function of it
        names = dict(vars(importlib.import_module(module.rpartition(".")[0])))
    names |= CONTEXTS[name](tmp_path)
    exec(compile(code, name, "exec"), names)  # the product's own text
    made = [names[n.targets[0].id] for n in ast.parse(code).body if isinstance(n, ast.Assign)]
    assert all(value is not None and not inspect.iscoroutine(value) for value in made)
    for value in made:
        if isinstance(value, pd.DataFrame):
            assert len(value) and ("status" not in value or value["status"].eq("done").all())


def test_the_example_on_paper_names_what_exists():
    (code,) = [examples()[name] for name in ON_PAPER]
    assert "burn_scars" in code and set(("B04", "B03", "B02", "B8A")) <= set(datasets.DATASETS["burn_scars"].all_bands)
