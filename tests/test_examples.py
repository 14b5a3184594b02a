"""Examples in docstrings: every name of peftlib in them exists, and some run as written."""

import ast
import importlib
import inspect
import textwrap
from pathlib import Path

import pytest
import torch
from helpers import tiny_vit

import peftlib as pl

PACKAGE = Path(pl.__file__).parent


def examples() -> dict[str, str]:
    """Module, or module.name -> the code in its docstring: indented lines that parse and call something."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(("peftlib", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                blocks = text.split("\n\n")
                blocks += [block.partition("\n")[2] for block in blocks]  # behind a line that ends in a colon
                if code := [part for part in map(textwrap.dedent, blocks) if is_code(part)]:
                    found[module if isinstance(node, ast.Module) else f"{module}.{node.name}"] = "\n".join(code)
    return found


def is_code(text: str) -> bool:
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return False
    statements = all(isinstance(node, ast.Assign | ast.Expr | ast.Import | ast.ImportFrom) for node in body)
    return statements and any(isinstance(getattr(node, "value", None), ast.Call) for node in body)


@pytest.mark.parametrize("name", examples())
def test_an_example_names_what_exists(name):
    for node in ast.walk(ast.parse(examples()[name])):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("peftlib"):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "pl":
            known = inspect.signature(getattr(pl, node.func.attr)).parameters
            assert {keyword.arg for keyword in node.keywords} <= set(known)


def run(name: str, scope: dict) -> dict:
    exec(examples()[name], scope := vars(importlib.import_module(name)) | {"pl": pl} | scope)
    return scope


@pytest.mark.weights
def test_the_example_of_the_package_runs():
    assert run("peftlib", {})["model"](torch.rand(1, 4, 126, 126) * 0.4).shape == (1, 82, 384)


def test_the_example_of_time_series_runs():
    fields = [(torch.rand(4, 4, 32, 32) * 0.4 + 0.01, (100, 160, 220, 280)) for _ in range(2)]
    scope = run("peftlib.deflect.time_series", {"fields": fields, "vit": tiny_vit()})
    assert scope["x"].shape == (2, 3 + 4 * 6, 32, 32) and scope["model"](scope["x"]).shape[0] == 2
