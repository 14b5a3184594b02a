"""One file adds a method, an input or a data set: those of CONTRIBUTING, dropped into a copy, are found by everything.

A copy in a process of its own, so that no other edit and nothing that is registered already can help.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Compiling is slow, and the registry's own run compiles every method and input that is there.
CHOSEN = "(gated_bias and not emb_series or false_colour-lora or one_file) and not one_graph"
FILES = re.findall(r"```python\n# (peftlib/\S+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    for name in ("peftlib", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "with_*"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    cells = json.loads((ROOT / "notebooks" / "05_figures.ipynb").read_text())["cells"]
    (figure,) = [text for c in cells if "sns.heatmap(grid," in (text := "".join(c["source"]))]
    (folder / "cell.py").write_text(figure)
    for path, text in FILES:
        assert not (folder / path).exists()
        (folder / path).write_text(text)
    return folder


def test_contributing_shows_one_file_of_each_kind():
    assert [Path(path).parent.name for path, _ in FILES] == ["methods", "methods", "readers"]


def test_everything_finds_the_new_files(copy):
    """The tests of registries and options on the method and the input, and ``one_file.py``, in one process."""
    places = {"PYTHONPATH": f"{copy}{os.pathsep}{copy / 'tests'}", "PEFTLIB_DATA": str(copy / "data")}
    tests = ("test_registry.py", "test_options.py", "one_file.py")
    command = [sys.executable, "-m", "pytest", "-n", "0", "-k", CHOSEN]
    done = subprocess.run(
        [*command, *(f"tests/{name}" for name in tests)],
        cwd=copy,
        env=os.environ | places | {"PEFTLIB_RUNS": str(copy / "runs")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 20
    assert (copy / "figure.png").stat().st_size > 5000
