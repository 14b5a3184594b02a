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

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, tuple[Requirement, int]]:
    """Name -> (pinned requirement, number of hashes) of requirements.lock."""
    text = (ROOT / "requirements.lock").read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement = Requirement(re.split(r"\s--hash|\s#", line)[0].strip())
            found.setdefault(canonicalize_name(requirement.name), []).append(
                (requirement, line.count("--hash=sha256:"))
            )
    return found


def declared() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(text) for text in (*PROJECT["dependencies"], *(t for extra in extras for t in extra))]


@pytest.mark.parametrize("requirement", declared(), ids=lambda r: r.name)
def test_the_lock_satisfies_every_dependency(requirement):
    candidates = pins().get(canonicalize_name(requirement.name))
    assert candidates, f"{requirement.name} is not in requirements.lock"
    for pin, _ in candidates:
        (clause,) = pin.specifier
        assert clause.operator == "==" and clause.version in requirement.specifier


def test_every_pin_is_exact_and_has_hashes():
    for name, versions in pins().items():
        for pin, hashes in versions:
            assert [clause.operator for clause in pin.specifier] == ["=="], name
            assert hashes > 0, f"{name} has no hash"
    assert len(pins()) > 50


def test_terratorchs_environment_is_pinned_too():
    text = (ROOT / "requirements-terratorch.txt").read_text().splitlines()
    pinned = {}
    for line in text:
        if line.strip() and not line.lstrip().startswith("#"):
            pin = Requirement(line)
            assert [clause.operator for clause in pin.specifier] == ["=="], line
            pinned[canonicalize_name(pin.name)] = next(iter(pin.specifier)).version
    extras = PROJECT["optional-dependencies"]
    asked = [line for line in (ROOT / "requirements-terratorch.in").read_text().splitlines() if line[:1].isalpha()]
    assert any(line.startswith("terratorch==") for line in asked)
    for requirement in map(Requirement, (*PROJECT["dependencies"], *extras["geo"], *extras["peft"], *asked)):
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_conda_installs_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert pip == ["-r requirements.lock"]
    assert {re.split("[=<>]", d)[0] for d in conda} == {"python", "pip"}  # nothing beside the lock
    (python,) = [d.split("=", 1)[1].lstrip("=") for d in conda if d.startswith("python")]
    assert Version(python) in SpecifierSet(PROJECT["requires-python"])


def test_the_lock_is_for_the_oldest_python():
    oldest = Version(re.search(r"\d+\.\d+", PROJECT["requires-python"])[0])
    marked = [pin.marker for versions in pins().values() for pin, _ in versions if pin.marker]
    environment = {"python_version": str(oldest), "python_full_version": f"{oldest}.0", "sys_platform": "linux"}
    present = {
        name
        for name, versions in pins().items()
        if any(pin.marker is None or pin.marker.evaluate(environment) for pin, _ in versions)
    }
    assert marked and {canonicalize_name(r.name) for r in declared()} <= present


def test_the_version_is_one():
    import peftlib

    assert peftlib.__version__ == PROJECT["version"]


def test_import_is_light():
    """A user who only adapts a model pays for neither notebooks nor optional extras."""
    heavy = [
        "matplotlib",
        "seaborn",
        "torchgeo",
        "papermill",
        "sklearn",
        "xarray",
        "nbformat",
        "onnx",
        "pandas",
        "peft",
        "terratorch",
        "peftlib.integrations",
    ]
    code = f"import sys, peftlib; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_the_tree_of_contributing_is_the_folder():
    package = ROOT / "peftlib"
    there = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    assert set(floors()) == there
    tree = (ROOT / "CONTRIBUTING.md").read_text().split("```")[1]
    for line in re.findall(r"^\d  (\w+)/ (.*)", tree, re.MULTILINE):
        inner = {path.parent.name for path in (package / line[0]).glob("*/__init__.py")}
        assert set(re.findall(r"(\w+)/", line[1])) == inner, line


@pytest.mark.parametrize("what", sizes())
def test_the_house_keeps_its_size_and_its_floors(what):
    there, most = sizes()[what]
    assert there <= most, "make size says more"


def test_named_files_and_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    assert targets >= set(re.search(r"\.PHONY: (.*)", makefile)[1].split())
    for name in ("README.md", "CONTRIBUTING.md", "RELIABILITY.md", "data/README.md"):
        text = (ROOT / name).read_text()
        for link in re.findall(r"\]\(([^)h#][^)]*)\)", text):
            assert ((ROOT / name).parent / link).exists(), f"{name}: {link}"
        for command in re.findall(r"`make ([\w-]+)", text) + re.findall(r"^make ([\w-]+)", text, re.MULTILINE):
            assert command in targets, f"{name}: make {command}"
    promised = re.findall(r"`(tests/[\w./]+)`", (ROOT / "RELIABILITY.md").read_text())
    assert len(promised) > 10 and all((ROOT / path).exists() for path in promised)
