"""Notebooks: as files, and the runner: parameters are checked before anything runs, and a failure damages nothing."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from peftlib.__main__ import main, studies
from peftlib.studies.notebooks import check_reference, convert, declared_parameters, find_notebook, read_parameters

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
PARAMETERS = """\
profile: str = "quick"  # quick, real or paper
steps: int = 3
rate: float = 1e-3
fail: bool = False
name: str = "07_first"
layers: list[int] = [0, 1]
"""
# Writes a figure where the runner looks for it, then fails if it is told to.
BODY = """\
import os, pathlib
folder = pathlib.Path(os.environ["PEFTLIB_FIGURES"]) / profile
folder.mkdir(parents=True, exist_ok=True)
(folder / f"{name}.png").write_bytes(b"png")
print("steps", steps, "in", pathlib.Path.cwd().name)
"""
FAILURE = 'if fail:\n    raise RuntimeError("no such\\nluck")'


def write_notebook(path, parameters=PARAMETERS, cells=(BODY, FAILURE), kernel="python3"):
    document = nbformat.v4.new_notebook()
    document.metadata["kernelspec"] = {"name": kernel, "display_name": "Python 3", "language": "python"}
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"] if parameters else []})
    document.cells = [first, *(nbformat.v4.new_code_cell(cell) for cell in cells)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(document, path)
    return path


@pytest.fixture
def notebook(tmp_path):
    return write_notebook(tmp_path / "books" / "07_first.ipynb")


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """Runs and figures go to a folder of the test's own."""
    monkeypatch.setenv("PEFTLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PEFTLIB_FIGURES", str(tmp_path / "figures"))
    return tmp_path


# --- those of the repository ---


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_whole_and_logic_lives_in_the_module(path):
    """Executed in order or stripped; a title; no class, no function over ten lines, no cell over 25; parameters typed,
    with help. A widget has a picture beside it, for where no kernel runs."""
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in code]
    assert counts in (list(range(1, len(code) + 1)), [None] * len(code))
    assert not any(o["output_type"] == "error" or o.get("name") == "stderr" for c in code for o in c["outputs"])
    assert "".join(cells[0]["source"]).startswith("# ")
    assert "profile" in declared_parameters(path)
    for cell in code:
        source = "".join(cell["source"])
        assert source.count("\n") < 25, source.splitlines()[0]
        widgets = [o["data"] for o in cell["outputs"] if any("widget-view" in kind for kind in o.get("data", ()))]
        assert all("image/png" in data for data in widgets)
        if "parameters" in cell["metadata"].get("tags", []):  # papermill misses a line with a second "="
            assert all(line.count("=") == 1 and "  # " in line for line in source.splitlines())
            assert not re.search(r"^update_\w+: bool = True", source, re.MULTILINE), "it would rewrite what it checks"
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.ClassDef)
            assert not isinstance(node, ast.FunctionDef) or node.end_lineno - node.lineno < 10, node.name


@pytest.mark.weights
def test_a_notebook_runs_short_and_from_another_folder(tmp_path):
    folders = {"PEFTLIB_RUNS": str(tmp_path / "runs"), "PEFTLIB_FIGURES": str(tmp_path / "figures")}
    folders["PYTHONPATH"] = str(ROOT)  # this checkout's package, whichever is installed
    command = [sys.executable, "-m", "peftlib", "run", "01_embedding_decomposition", "--set", "steps=2"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | folders, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("01_embedding_decomposition ")
    text = (tmp_path / "runs" / "quick" / "01_embedding_decomposition.ipynb").read_text()
    assert "not compared: data/reference/01_embedding_decomposition.csv" in text
    assert list((tmp_path / "figures" / "quick").glob("01_*.png"))


# --- parameters ---


TAKEN = [(0.5, "1e-4", 1e-4), (0.5, "3", 3.0), (1, "-1", -1), (False, "true", True), (True, "False", False)]
TAKEN += [("a", "3", "3"), ([1], "[2, 3]", [2, 3]), ({}, "{'a': 1}", {"a": 1})]
REFUSED = [(1, "3.5"), (1, "True"), (1, ""), (1, "__import__('os')"), (0.5, "fast"), (0.5, "True"), (True, "1")]
REFUSED += [(True, "yes"), ([1], "3"), ([1], "(1, 2)")]


def test_values_are_of_the_kind_of_the_default_or_are_refused():
    for default, text, value in TAKEN:
        got = convert("it", default, text)
        assert got == value and type(got) is type(value)
    for default, text in REFUSED:
        with pytest.raises(ValueError, match=rf"parameter it=.* is no {type(default).__name__}"):
            convert("it", default, text)


def test_settings_are_read_against_what_the_notebook_declares(notebook, tmp_path):
    assert read_parameters(notebook, "real", {"steps": "4"}) == {"profile": "real", "steps": 4}
    with pytest.raises(ValueError, match=r"07_first.ipynb has no parameter stepz; it has .*steps = 3, rate = 0.001"):
        read_parameters(notebook, "quick", {"stepz": "3"})
    with pytest.raises(ValueError, match=r"unknown profile 'fast'.*quick, real, paper"):
        read_parameters(notebook, "fast", {})
    plain = write_notebook(tmp_path / "plain.ipynb", "steps: int = 3")
    assert read_parameters(plain, "quick", {}) == {}  # a notebook without profile is not given one


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ("", "no cell tagged 'parameters'"),
        ("steps: int = 3\nrate: float = 1 / 3", "odd.ipynb: defaults of parameters must be literals"),
    ],
)
def test_parameter_cells_of_another_form_are_refused(parameters, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        declared_parameters(write_notebook(tmp_path / "odd.ipynb", parameters))


# --- the command line ---


def test_a_missing_notebook_lists_what_there_is(monkeypatch):
    monkeypatch.chdir("/")
    with pytest.raises(FileNotFoundError, match=r"08_eighth.*01_embedding_decomposition"):
        find_notebook("08_eighth")
    path = next(path for path in NOTEBOOKS if path.stem.startswith("01"))
    assert {find_notebook(name) for name in (path.stem, path.name, path)} == {path}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "stepz=3"], "stepz"),
        (["--set", "steps=3.5"], "steps='3.5'"),
        (["--set", "steps"], "--set name=value"),
        (["--set", "=3"], "--set name=value"),
        (["--profile", "fast"], "unknown profile 'fast'"),
        (["nowhere.ipynb"], "nowhere.ipynb"),
        (["../damaged.ipynb"], "damaged.ipynb"),
    ],
)
def test_wrong_commands_run_nothing(arguments, says, notebook, outputs, capsys, monkeypatch):
    monkeypatch.chdir(notebook.parent)
    (outputs / "damaged.ipynb").write_text('{"cells": 3}')
    assert main(["run", str(notebook), *arguments]) == 1
    assert says in capsys.readouterr().err
    assert not (outputs / "runs").exists() and not (outputs / "figures").exists()


def test_run_fail_and_run_again(notebook, outputs, monkeypatch, capsys):
    elsewhere = outputs / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("PEFTLIB_FIGURES", "../figures")  # relative to the caller's folder, not to the notebook's
    command = ["run", "../books/07_first.ipynb"]
    copy, figure = outputs / "runs" / "quick" / "07_first.ipynb", outputs / "figures" / "quick" / "07_first.png"

    assert main([*command, "--set", "steps=5"]) == 0
    assert capsys.readouterr().out.startswith("07_first ")
    assert figure.is_file() and not list(elsewhere.iterdir())
    printed = [o["text"] for c in nbformat.read(copy, 4).cells for o in c.get("outputs", [])]
    assert printed == ["steps 5 in books\n"]  # the parameter arrived, and it ran beside the notebook
    assert all(not cell.get("outputs") for cell in nbformat.read(notebook, 4).cells)  # the source is as it was

    good = copy.read_bytes()
    assert main([*command, "--set", "fail=true"]) == 1  # runs, and fails
    captured = capsys.readouterr()
    error = captured.err.splitlines()[-1]  # before it, progress
    assert not captured.out
    assert error.startswith("error: 07_first.ipynb, cell [4]: RuntimeError: no such luck")
    assert copy.read_bytes() == good
    assert sorted(p.name for p in copy.parent.iterdir()) == ["07_first.failed.ipynb", "07_first.ipynb"]

    assert main([*command, "--set", "steps=5"]) == 0
    assert [p.name for p in copy.parent.iterdir()] == ["07_first.ipynb"]


def test_studies_are_found_by_name(capsys):
    assert {"decoders", "regions", "sensors"} <= set(studies()) and "notebooks" not in studies()
    with pytest.raises(SystemExit):
        main(["study", "weather"])
    assert "invalid choice: 'weather'" in capsys.readouterr().err


# --- committed numbers ---


def test_numbers_are_compared_within_a_tolerance(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("peftlib.studies.notebooks.root", lambda: tmp_path)
    check_reference("n", {"a": 1.0, "b": 2.0}, "quick", 0.1, update=True, settings={"seed": 0})
    assert len(check_reference("n", {"a": 1.05, "b": 2.0}, "quick", 0.1, False, settings={"seed": 0})) == 2
    for values in ({"a": 1.2, "b": 2.0}, {"a": float("nan"), "b": 2.0}, {"a": 1.0}, {"a": 1.0, "b": 2.0, "c": 0.0}):
        with pytest.raises(AssertionError, match=r"1 of \d numbers differ by more than 0.1"):
            check_reference("n", values, "quick", 0.1, False, settings={"seed": 0})
    for profile, seed in (("real", 0), ("quick", 1)):  # numbers of other parameters
        assert check_reference("n", {"a": 9.0}, profile, 0.1, False, settings={"seed": seed}).empty
    assert capsys.readouterr().out.count("not compared") == 2
