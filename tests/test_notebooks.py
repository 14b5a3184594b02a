"""The notebooks as files, and one of them through the runner from another folder."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from peftlib.runner import declared_parameters

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


@pytest.mark.weights
def test_a_notebook_runs_from_another_folder(tmp_path):
    command = [sys.executable, "-m", "peftlib", "run", "01_embedding_decomposition", "--set", "steps=2"]
    folders = {"PEFTLIB_RUNS": str(tmp_path / "runs"), "PEFTLIB_FIGURES": str(tmp_path / "figures")}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | folders, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("done: 1 notebooks (1 executed), 8 figure files")
    text = (tmp_path / "runs" / "quick" / "01_embedding_decomposition.ipynb").read_text()
    assert "not compared: data/reference/01_embedding_decomposition.csv" in text
