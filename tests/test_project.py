"""The promises of the repository itself: pins agree, imports are light, floors and sizes are kept, texts are true."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from size import floors, sizes

import peftlib

ROOT = Path(__file__).resolve().parents[1]
DOCS = [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins(name: str) -> dict[str, list[tuple[Requirement, int]]]:
    """Of a lock: package -> its pins (one a Python version, where they differ) and how many hashes each has."""
    found: dict[str, list] = {}
    for line in (ROOT / name).read_text().replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            pin = Requirement(re.split(r"\s--hash|\s#", line)[0].strip())
            found.setdefault(canonicalize_name(pin.name), []).append((pin, line.count("--hash=sha256:")))
    return found


def test_the_lock_pins_every_dependency_for_the_oldest_python_too():
    locked, oldest = pins("requirements.lock"), re.search(r"\d+\.\d+", PROJECT["requires-python"])[0]
    environment = {"python_version": oldest, "python_full_version": f"{oldest}.0", "sys_platform": "linux"}
    for requirement in map(Requirement, sum(EXTRAS.values(), PROJECT["dependencies"])):
        own = [pin for pin, _ in locked[canonicalize_name(requirement.name)]]
        assert all(next(iter(pin.specifier)).version in requirement.specifier for pin in own), requirement
        assert any(pin.marker is None or pin.marker.evaluate(environment) for pin in own), requirement
    for name, own in locked.items():
        assert all([c.operator for c in pin.specifier] == ["=="] and hashes for pin, hashes in own), name


def test_terratorchs_environment_is_pinned_too():
    locked = pins("requirements-terratorch.txt")
    asked = [line for line in (ROOT / "requirements-terratorch.in").read_text().splitlines() if line[:1].isalpha()]
    for requirement in map(Requirement, (*PROJECT["dependencies"], *EXTRAS["geo"], *EXTRAS["peft"], *asked)):
        ((pin, _),) = locked[canonicalize_name(requirement.name)]
        (clause,) = pin.specifier
        assert clause.operator == "==" and clause.version in requirement.specifier, requirement


def test_conda_installs_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python, pip, lock = environment
    assert pip == "pip" and lock == {"pip": ["-r requirements.lock"]}  # nothing beside the lock
    assert Version(python.partition("=")[2]) in SpecifierSet(PROJECT["requires-python"])


def test_the_version_is_one():
    assert peftlib.__version__ == PROJECT["version"]


def test_import_is_light():
    """A user who only adapts a model pays for neither notebooks nor extras; readers import theirs when they read."""
    heavy = ["matplotlib", "seaborn", "papermill", "sklearn", "xarray", "onnx", "pandas", "peft"]
    geo = ["rasterio", "h5py", "torchgeo", "spyndex", "earthlib", "pyarrow", "segmentation_models_pytorch"]
    code = "import sys, {}; print([m for m in {} if m in sys.modules], end='')"
    code = f"{code.format('peftlib', heavy + geo)}\n{code.format('peftlib.data', geo)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[][]"


def test_the_tree_of_contributing_is_the_folder():
    package = ROOT / "peftlib"
    there = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    assert set(floors()) == there
    for name, text in re.findall(r"^\d  (\w+)/ (.*)", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE):
        inner = {path.parent.name for path in (package / name).glob("*/__init__.py")}
        assert set(re.findall(r"(\w+)/", text)) == inner, name


@pytest.mark.parametrize("what", sorted(set(sizes()) - {"lines of peftlib"}))  # a goal: ``make size`` asks for it
def test_the_house_keeps_its_size_and_its_floors(what):
    there, most = sizes()[what]
    assert there <= most, "make size says more"


def test_named_files_and_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    assert targets >= set(re.search(r"\.PHONY: (.*)", makefile)[1].split())
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "data/README.md", *DOCS):
        text = (ROOT / name).read_text()
        links = re.findall(r"\]\(([^)h#][^)]*)\)", text)
        missing = [link for link in links if not (ROOT / name).parent.joinpath(link).exists()]
        commands = re.findall(r"`make ([\w-]+)", text) + re.findall(r"^make ([\w-]+)", text, re.MULTILINE)
        assert not missing + [command for command in commands if command not in targets], name
    promised = re.findall(r"`(tests/[\w./]+)`", (ROOT / "docs" / "reliability.md").read_text())
    assert len(promised) > 10 and all((ROOT / path).exists() for path in promised)
