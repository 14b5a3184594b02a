"""What data there are on this machine, and how to get the rest."""

from typing import TYPE_CHECKING

import torch

from peftlib.data.dataset import DATASETS, EarthDataset
from peftlib.sensors.spectral_indices import index_function

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
        rows[name] = {
            "task": cls.task,
            "classes": len(cls.classes),
            "sensor": cls.sensor,
            "bands": len(cls.all_bands),
            "GSD, m": cls.gsd,
            "here": ", ".join(found) or "missing",
            "folder": cls.folder,
            "source": cls.source,
        }
    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("data set")


def statistics(data: EarthDataset, images: int = 300) -> "pandas.Series":
    """Of pixels of evenly spaced images: each band's mean and standard deviation, and deciles of NDVI and NDWI."""
    import pandas

    chosen = torch.linspace(0, len(data) - 1, min(images, len(data))).long().unique().tolist()
    image = torch.cat([data[i]["image"][:, 2::4, 2::4].flatten(1) for i in chosen], dim=1)
    image = image[:, image.isfinite().all(0)]
    names = data.band_set.names
    values = {f"{band} mean": float(row.mean()) for band, row in zip(names, image, strict=True)}
    values |= {f"{band} std": float(row.std()) for band, row in zip(names, image, strict=True)}
    for name in ("NDVI", "NDWI"):
        index = index_function(name, data.band_set)(image[None, :, :, None]).flatten()
        deciles = torch.quantile(index[:: max(1, len(index) // 1_000_000)], torch.tensor([0.1, 0.5, 0.9]))
        values |= {f"{name} {share}": float(v) for share, v in zip(("10%", "50%", "90%"), deciles, strict=True)}
    return pandas.Series(values)
