"""How large the house is, and whether its floors hold: ``make size`` prints it, ``test_project`` asks the same.

The floors stand in CONTRIBUTING's tree: a package imports from lower ones only, so no circle can be.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "peftlib"


def floors() -> dict[str, int]:
    """Package or module directly in peftlib -> its floor, from the lines ``5  model/  what it holds`` of the tree."""
    lines = re.findall(r"^(\d+)  (\w+)(?:/|\.py) ", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    return {name: int(floor) for floor, name in lines}


def imported(path: Path) -> set[str]:
    """Packages and modules directly in peftlib that a file imports, anywhere in it; ``import peftlib`` is __init__."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "peftlib":
            names |= {f"peftlib.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""}
    return {[*name.split("."), "__init__"][1] for name in names if name.split(".")[0] == "peftlib"}


def wrong_imports() -> list[str]:
    """Imports that do not go down."""
    floor, wrong = floors(), []
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for other in sorted(imported(path) - {own}):
            if floor.get(other, 99) >= floor.get(own, 0):
                wrong.append(f"{path.relative_to(ROOT)} imports {other}")
    return wrong


def lines(*patterns: str, without: tuple[str, ...] = ()) -> int:
    """Of all Python files under the repository that match, but for those named."""
    paths = {path for pattern in patterns for path in ROOT.glob(pattern)} - {ROOT / name for name in without}
    return sum(len(path.read_text().splitlines()) for path in paths)


def sizes() -> dict[str, tuple[int, int]]:
    """What is counted -> (how much there is, how much there may be)."""
    core = ["sensors/bands.py", "sensors/reflectance.py", "methods/*.py", "deflect/*.py", "model/*.py"]
    beside = ("peftlib/deflect/analysis.py", "peftlib/deflect/time_series.py")
    first = [f"peftlib/deflect/{name}.py" for name in ("patch_embedding", "attention", "norm_constraint", "method")]
    long = [path for path in PACKAGE.rglob("*.py") if len(path.read_text().splitlines()) > 300]
    return {
        "lines of peftlib": (lines("peftlib/**/*.py"), 8500),
        "lines of its core": (lines(*(f"peftlib/{pattern}" for pattern in core), without=beside), 2500),
        "lines of DEFLECT's four files": (lines(*first), 600),
        "lines of tests": (lines("tests/**/*.py"), 10000),
        "files over 300 lines": (len(long), 0),
        "floors": (max(floors().values()), 9),
        "imports that do not go down": (len(wrong_imports()), 0),
    }


if __name__ == "__main__":
    for what, (there, most) in sizes().items():
        print(f"{what:30s} {there:6,d} of {most:6,d}{'' if there <= most else '   TOO MANY'}")
    print("\n".join(wrong_imports()))
    sys.exit(any(there > most for there, most in sizes().values()))
