"""Type hints: mypy accepts the package, with the settings of pyproject.toml."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_mypy_accepts_the_package(tmp_path):
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path), "peftlib"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
