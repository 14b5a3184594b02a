"""RELIABILITY.md counts what there is."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = re.findall(
    r"^\| (.*) \| `(tests/test_\w+\.py)` \| (\d+) \| (\d+) \|$", (ROOT / "RELIABILITY.md").read_text(), re.M
)


def test_every_promise_has_its_tests():
    assert len(ROWS) == (ROOT / "RELIABILITY.md").read_text().count("| **")
    assert all((ROOT / path).is_file() and int(fast) + int(slow) > 0 for _, path, fast, slow in ROWS)


@pytest.mark.parametrize(("path", "fast", "slow"), [row[1:] for row in ROWS], ids=[row[1] for row in ROWS])
def test_counts_are_those_of_the_tests(path, fast, slow, counted):
    found = counted.get(ROOT / path)
    if found is None:
        pytest.skip(f"{path} was not collected")
    print(f"\n{path}: {found['fast']} cases, and {found['slow']} slow ones")
    assert found == {"fast": int(fast), "slow": int(slow)}
