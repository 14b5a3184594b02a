"""The notebooks as files, and one of them through the runner from another folder."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from peftlib.experiments.results import read_table
from peftlib.studies.notebooks import declared_parameters

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_whole_or_stripped_whole(path):
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    counts = [c["execution_count"] for c in cells]
    assert counts in (list(range(1, len(cells) + 1)), [None] * len(cells))
    assert not any(o["output_type"] == "error" or o.get("name") == "stderr" for c in cells for o in c["outputs"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_logic_lives_in_the_module(path):
    """No class and no function over ten lines; parameters typed, with help; a title."""
    cells = json.loads(path.read_text())["cells"]
    assert "".join(cells[0]["source"]).startswith("# ")
    assert "profile" in declared_parameters(path)
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        if "parameters" in cell["metadata"].get("tags", []):
            assert all(line.count("=") == 1 and "  # " in line for line in source.splitlines())
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.ClassDef)
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 10, node.name


def run_elsewhere(folder: Path, *arguments: str) -> str:
    """``peftlib run`` from a folder that is not the repository, all that it makes in that folder; its last line."""
    folders = {"PEFTLIB_RUNS": str(folder / "runs"), "PEFTLIB_FIGURES": str(folder / "figures")}
    command = [sys.executable, "-m", "peftlib", "run", *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ | folders, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.weights
def test_a_notebook_runs_from_another_folder(tmp_path):
    said = run_elsewhere(tmp_path, "01_embedding_decomposition", "--set", "steps=2")
    assert said.startswith("done: 1 notebooks (1 executed), 8 figure files")
    text = (tmp_path / "runs" / "quick" / "01_embedding_decomposition.ipynb").read_text()
    assert "not compared: data/reference/01_embedding_decomposition.csv" in text


@pytest.mark.weights
def test_experiments_run_headless_and_the_figures_are_drawn_from_them(tmp_path):
    few = ("methods=['frozen', 'lora', 'deflect']", "extras=['ablation']", "epochs=1", "executor=in-process")
    run_elsewhere(tmp_path, "04_full_experiments", *(word for text in few for word in ("--set", text)))
    rows = read_table(tmp_path / "runs" / "quick" / "rows.csv")
    assert (rows["status"] == "done").all() and set(rows["epochs"]) == {1} and set(rows["stage"]) == {"final"}
    assert rows.groupby("method")["key"].nunique().to_dict() == {"frozen": 1, "lora": 1, "deflect": 3}
    assert rows.groupby("key")["split"].agg(set).map({"val", "test"}.__eq__).all()
    chosen = read_table("quick").query("stage == 'final'")[["method", "options", "lr"]].drop_duplicates()
    assert len(rows[["method", "options", "lr"]].drop_duplicates().merge(chosen)) == 5
    run_elsewhere(tmp_path, "05_figures", "--set", "rows=made")
    assert {"04_performance.png", "05_choice.png", "05_ablation.pdf", "05_table.tex", "05_table.csv"} <= {
        path.name for path in (tmp_path / "figures" / "quick").iterdir()
    }
    table = pd.read_csv(tmp_path / "figures" / "quick" / "05_table.csv")
    assert set(table["method"]) == {"frozen", "lora", "deflect"} and table["std"].isna().all()
