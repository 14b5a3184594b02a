"""The notebook runner: parameters are checked before anything runs, and a failure damages nothing."""

import json

import nbformat
import pytest

from peftlib.__main__ import main
from peftlib.studies.notebooks import convert, declared_parameters, find_notebook, read_parameters, run_notebooks

PARAMETERS = """\
profile: str = "quick"  # quick, real or paper
steps: int = 3
rate: float = 1e-3
fail: bool = False
name: str = "first"
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
FAILURE = 'if fail:\n    raise RuntimeError("no such luck")'


def write_notebook(path, parameters=PARAMETERS, cells=(BODY, FAILURE), tag="parameters"):
    document = nbformat.v4.new_notebook()
    document.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": [tag]})
    document.cells = [first, *(nbformat.v4.new_code_cell(cell) for cell in cells)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(document, path)
    return path


@pytest.fixture
def notebook(tmp_path):
    return write_notebook(tmp_path / "books" / "first.ipynb")


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """Runs and figures go to a folder of the test's own."""
    monkeypatch.setenv("PEFTLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PEFTLIB_FIGURES", str(tmp_path / "figures"))
    return tmp_path


# --- parameters ---


def test_declared_parameters_are_read_without_running(notebook):
    declared = declared_parameters(notebook)
    assert declared["steps"] == ("int", 3) and declared["layers"] == ("list[int]", [0, 1])
    assert list(declared) == ["profile", "steps", "rate", "fail", "name", "layers"]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("rate", "1e-4", 1e-4),
        ("rate", "3", 3.0),
        ("steps", "12", 12),
        ("steps", "-1", -1),
        ("fail", "true", True),
        ("fail", "False", False),
        ("name", "3", "3"),
        ("name", "a=b", "a=b"),
        ("layers", "[2, 3]", [2, 3]),
    ],
)
def test_values_take_their_declared_type(name, text, value, notebook):
    got = read_parameters(notebook, "real", {name: text})
    assert got == {"profile": "real", name: value} and type(got[name]) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("steps", "3.5"),
        ("steps", "3.0"),
        ("steps", "three"),
        ("steps", "True"),
        ("steps", ""),
        ("steps", "__import__('os')"),
        ("rate", "fast"),
        ("rate", "True"),
        ("fail", "1"),
        ("fail", "yes"),
        ("layers", "3"),
        ("layers", "(1, 2)"),
    ],
)
def test_values_of_another_type_are_refused(name, text, notebook):
    kind = declared_parameters(notebook)[name][0]
    with pytest.raises(ValueError) as error:
        read_parameters(notebook, "quick", {name: text})
    assert name in str(error.value) and repr(text) in str(error.value) and kind in str(error.value)


def test_members_of_lists_are_checked_too():
    assert convert("layers", "list[int]", "[1, 2]") == [1, 2]
    with pytest.raises(ValueError, match=r"list\[int\]"):
        convert("layers", "list[int]", "['a', 2.5]")


def test_unknown_parameters_list_what_there_is(notebook):
    with pytest.raises(ValueError, match=r"first.ipynb has no parameter stepz; it has .*steps: int, rate: float"):
        read_parameters(notebook, "quick", {"stepz": "3"})


@pytest.mark.parametrize("settings", [{}, {"profile": "fast"}])
def test_unknown_profiles_list_what_there_is(settings, notebook):
    with pytest.raises(ValueError, match=r"unknown profile 'fast'.*quick, real, paper"):
        read_parameters(notebook, "quick" if settings else "fast", settings)


def test_a_notebook_without_profile_is_not_given_one(tmp_path):
    path = write_notebook(tmp_path / "plain.ipynb", "steps: int = 3")
    assert read_parameters(path, "quick", {}) == {}


@pytest.mark.parametrize(
    ("parameters", "tag", "says"),
    [
        ("steps: int = 3", "other", "0 cells tagged 'parameters'"),
        ("steps = 3", "parameters", "line 1: write 'name: type = literal"),
        ("steps: int", "parameters", "line 1: write"),
        ("import os", "parameters", "line 1: write"),
        ("steps: Path = 3", "parameters", "type 'Path' of steps"),
        ("steps: int = 3\nrate: float = 1 / 3", "parameters", "line 2|rate"),
        ("steps: int = 3.5", "parameters", "steps"),
    ],
)
def test_parameter_cells_of_another_form_are_refused(parameters, tag, says, tmp_path):
    path = write_notebook(tmp_path / "odd.ipynb", parameters, tag=tag)
    with pytest.raises(ValueError, match=says):
        declared_parameters(path)


# --- finding ---


def test_a_missing_notebook_lists_what_there_is(tmp_path, monkeypatch, capsys, outputs):
    monkeypatch.setattr("peftlib.studies.notebooks.root", lambda: tmp_path)
    write_notebook(tmp_path / "notebooks" / "07_seventh.ipynb")
    with pytest.raises(FileNotFoundError, match=r"08_eighth.*07_seventh"):
        find_notebook("08_eighth")
    assert main(["run", "08_eighth"]) == 1
    assert "07_seventh" in capsys.readouterr().err
    assert not (outputs / "runs").exists()
    monkeypatch.chdir("/")
    for name in ("07_seventh", "07_seventh.ipynb", tmp_path / "notebooks" / "07_seventh.ipynb"):
        assert find_notebook(name) == tmp_path / "notebooks" / "07_seventh.ipynb"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "stepz=3"], "stepz"),
        (["--set", "steps=3.5"], "steps='3.5'"),
        (["--set", "steps"], "--set name=value"),
        (["--set", "=3"], "--set name=value"),
        (["--profile", "fast"], "unknown profile 'fast'"),
        (["nowhere.ipynb"], "nowhere.ipynb"),
    ],
)
def test_wrong_commands_run_nothing(arguments, says, notebook, outputs, capsys):
    assert main(["run", str(notebook), *arguments]) == 1
    assert says in capsys.readouterr().err
    assert not (outputs / "runs").exists() and not (outputs / "figures").exists()


# --- running (real kernels) ---


def test_run_skip_fail_and_run_again(notebook, outputs, monkeypatch, capsys):
    elsewhere = outputs / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    command = ["run", "../books/first.ipynb", "--if-changed"]
    copy, figure = outputs / "runs" / "quick" / "first.ipynb", outputs / "figures" / "quick" / "first.png"

    assert main([*command, "--set", "steps=5"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("first ") and "1 figure files" in out[0]
    assert out[-1].startswith("done: 1 notebooks (1 executed), 1 figure files")
    assert figure.is_file() and not list(elsewhere.iterdir())
    printed = [o["text"] for c in nbformat.read(copy, 4).cells for o in c.get("outputs", [])]
    assert printed == ["steps 5 in books\n"]  # the parameter arrived, and it ran beside the notebook
    assert all(not cell.get("outputs") for cell in nbformat.read(notebook, 4).cells)  # the source is as it was

    good = copy.read_bytes()
    assert main([*command, "--set", "steps=5"]) == 0  # nothing changed: skipped
    assert "up to date" in capsys.readouterr().out and copy.read_bytes() == good

    assert main([*command, "--set", "fail=true"]) == 1  # another parameter: runs, and fails
    captured = capsys.readouterr()
    assert "done" not in captured.out
    for text in ("first.ipynb", "cell [", "RuntimeError", "no such luck", "if fail:"):
        assert text in captured.err
    assert copy.read_bytes() == good
    assert sorted(p.name for p in copy.parent.iterdir()) == ["first.failed.ipynb", "first.ipynb"]

    figure.unlink()
    assert main([*command, "--set", "steps=5"]) == 0  # its figure is gone: runs again
    assert figure.is_file() and [p.name for p in copy.parent.iterdir()] == ["first.ipynb"]
    assert json.loads(copy.read_text())["metadata"]["peftlib"]["figures"] == [str(figure)]


def test_digest_sees_sources_and_parameters_but_not_outputs(notebook):
    from peftlib.studies.notebooks import digest

    before = digest(notebook, {"steps": 3})
    document = nbformat.read(notebook, 4)
    document.cells[1].outputs = [nbformat.v4.new_output("stream", text="something")]
    nbformat.write(document, notebook)
    assert digest(notebook, {"steps": 3}) == before != digest(notebook, {"steps": 4})
    document.cells[1].source += "\n# more"
    nbformat.write(document, notebook)
    assert digest(notebook, {"steps": 3}) != before


def test_a_notebook_is_not_given_the_figures_of_the_one_before(outputs):
    first = write_notebook(outputs / "first.ipynb", PARAMETERS)
    second = write_notebook(outputs / "second.ipynb", PARAMETERS, cells=["pass"])
    made = run_notebooks([first, second])
    assert [len(m.figures) for m in made] == [1, 0]


@pytest.mark.parametrize("text", ["{", "[]", '{"cells": 3}'])
def test_a_damaged_notebook_is_named(text, outputs, capsys):
    path = outputs / "damaged.ipynb"
    path.write_text(text)
    assert main(["run", str(path)]) == 1
    assert "damaged.ipynb" in capsys.readouterr().err


def test_a_notebook_for_a_kernel_that_is_not_here_is_named(notebook, outputs, capsys):
    document = nbformat.read(notebook, 4)
    document.metadata["kernelspec"]["name"] = "no-such-kernel"
    nbformat.write(document, notebook)
    assert main(["run", str(notebook)]) == 1
    error = capsys.readouterr().err
    assert "first.ipynb" in error and "no-such-kernel" in error
    assert not list((outputs / "runs").rglob("*.ipynb"))


def test_a_relative_figures_folder_is_the_callers(notebook, outputs, monkeypatch):
    """The kernel runs beside the notebook, where a relative path would mean another folder."""
    monkeypatch.chdir(outputs)
    monkeypatch.setenv("PEFTLIB_FIGURES", "mine")
    (made,) = run_notebooks([notebook])
    assert (outputs / "mine" / "quick" / "first.png").is_file()
    assert len(made.figures) == 1
