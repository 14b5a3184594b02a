"""What data there are on this machine, and how to get the rest."""

from typing import TYPE_CHECKING

import torch

from peftlib.data.dataset import DATASETS, EarthDataset
from peftlib.data.subsets import every_nth

if TYPE_CHECKING:
    import pandas


def overview() -> "pandas.DataFrame":
    """One row a data set: facts, the number of images of each split that is there, else where to get it."""
    import pandas

    rows = {}
    for name, cls in DATASETS.items():
        found = []
        for split in cls.splits:
            try:
                found.append(f"{split} {len(cls(split))}")
            except (FileNotFoundError, ValueError):
                continue
        facts = {"task": cls.task, "classes": len(cls.classes), "sensor": cls.sensor, "bands": len(cls.all_bands)}
        here = {"here": ", ".join(found) or "missing", "folder": cls.folder, "source": cls.source}
        rows[name] = facts | {"GSD, m": cls.gsd} | here
    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("data set")


def statistics(data: EarthDataset, images: int = 300) -> "pandas.Series":
    """Each band's mean and standard deviation, ``"B02 mean"``, ``"B02 std"``, over pixels of evenly spread images."""
    import pandas

    chosen = every_nth(data, images)
    pixels = torch.cat([chosen[i]["image"][:, 2::4, 2::4].flatten(1) for i in range(len(chosen))], dim=1)
    pixels = pixels[:, pixels.isfinite().all(0)]
    found = {"mean": pixels.mean(1).tolist(), "std": pixels.std(1).tolist()}
    names = data.band_set.names
    return pandas.Series({f"{band} {moment}": row[i] for moment, row in found.items() for i, band in enumerate(names)})
