"""The promises of the repository itself: pins agree, imports are light, floors are kept."""

import ast
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

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Floors, from the ground: a module imports only from floors below its own.
FLOORS = (
    {"paths"},
    {"bands", "attention", "decoders", "weights", "metrics", "batches", "metadata"},
    {"reflectance", "indices", "wavelengths", "series", "checkpoints", "results"},
    {"backbones", "embedding", "datasets", "plots"},
    {"methods"},
    {"adapt"},
    {"adapters", "transfer"},
    {"costs", "learning"},
    {"tasks", "analysis", "probes", "features"},
    {"training", "predict", "integrations"},
    {"runs", "metamer_test", "calendar_test", "forgetting"},
    {"trial"},
    {"experiments", "bench"},
    {"study", "executors", "planning"},
    {"scoring", "sensor_study", "series_study", "regions_study"},
    {"tables", "decoder_study"},
    {"figure_parts"},
    {"result_plots", "cost_plots", "decoder_plots", "beyond_plots", "series_plots", "region_plots"},
    {"runner", "doctor"},
    {"__main__", "__init__"},
)


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


def imported(path: Path) -> set[str]:
    """Modules of peftlib that a file imports, by their first name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "peftlib":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


def test_modules_import_from_lower_floors_only():
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    package = ROOT / "peftlib"
    for path in package.rglob("*.py"):
        relative = path.relative_to(package)
        name = relative.parts[0].removesuffix(".py")
        assert name in floor, f"{relative} has no floor"
        for other in imported(path) - {name}:
            assert floor[other] < floor[name], f"{relative} imports {other}, which is not below it"


def test_the_package_reads_nothing_of_notebooks_or_tests():
    for path in (ROOT / "peftlib").rglob("*.py"):
        modules = {
            (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name) or ""
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom | ast.Import)
        }
        assert not {m.split(".")[0] for m in modules} & {"tests", "notebooks", "helpers", "conftest"}, path
