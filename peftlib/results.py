"""Result rows and tables, and the check of a notebook's numbers against committed ones."""

import json
import math
from pathlib import Path

import pandas as pd

from peftlib.paths import root

REFERENCE = "data/reference"


def check_reference(
    name: str,
    values: dict[str, float],
    profile: str,
    tolerance: float,
    update: bool = False,
    settings: dict | None = None,
) -> pd.DataFrame:
    """Compare a notebook's numbers with those committed in ``data/reference/<name>.csv``.

    Digits move with the processor's arithmetic, so text comparison would be too strict and no comparison too lax.

    Args:
        values: quantity -> number measured now.
        profile: numbers are committed for ``quick``; others are not compared.
        tolerance: largest absolute difference that is let through.
        update: write the numbers instead of comparing.
        settings: parameters that the numbers depend on, kept with them; numbers of others are not compared.

    Returns:
        columns quantity, reference, measured (empty where there is nothing to compare with).

    Raises:
        AssertionError: a number is missing, not finite, or further off than the tolerance; names each.
    """
    path = root() / Path(REFERENCE) / f"{name}.csv"
    measured = pd.Series(values, name="measured", dtype=float).rename_axis("quantity")
    head = f"# {json.dumps(settings)}\n" if settings is not None else ""
    if update and profile == "quick":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + measured.rename("reference").round(4).to_csv())
    if profile != "quick" or not path.is_file() or not path.read_text().startswith(head):
        print(f"not compared: {REFERENCE}/{name}.csv has no numbers for these parameters")
        return pd.DataFrame(columns=["quantity", "reference", "measured"])
    reference = pd.read_csv(path, index_col="quantity", comment="#")["reference"]
    table = pd.concat([reference, measured], axis=1).reset_index()
    off = [
        f"{row.quantity}: {row.measured:.4f}, committed {row.reference:.4f}"
        for row in table.itertuples()
        if not (math.isfinite(row.measured) and abs(row.measured - row.reference) <= tolerance)
    ]
    assert not off, f"{len(off)} of {len(table)} numbers differ by more than {tolerance}: " + "; ".join(off)
    print(f"all {len(table)} numbers within {tolerance} of {REFERENCE}/{name}.csv")
    return table
