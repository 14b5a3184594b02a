"""What a folder of images holds, and what will be refused, before any training."""

from collections import Counter
from functools import partial

import numpy as np

from peftlib.data.dataset import EarthDataset

PIXELS = 1000  # of each sample that percentiles are made of


def summary(data) -> str:
    """A report of one reading of all samples: sizes, shares of classes, values of each band, and what is refused."""
    import pandas

    counts, pixels, refused = Counter(), [np.empty((len(data.band_set), 0))], set()
    for read in [*(partial(EarthDataset.__getitem__, data, i) for i in range(len(data))), data.look]:
        try:
            if sample := read():
                values = sample["image"].flatten(1).numpy()
                pixels.append(values[:, :: values.shape[1] // PIXELS + 1])
                counts.update(np.ravel(sample["mask"] if "mask" in sample else sample["label"]).tolist())
        except (ValueError, FileNotFoundError) as error:
            refused.add(f"refused: {error}")
    names = dict(enumerate(data.classes)) | {data.ignore_index: "unknown"}
    frame = pandas.DataFrame(np.concatenate(pixels, axis=1).T, columns=list(data.band_set))
    table = frame.describe(percentiles=[0.02, 0.5, 0.98]).T.drop(columns="count")
    return "\n".join([
        f"{len(data.sizes)} images of {min(data.sizes.values())} to {max(data.sizes.values())} pixels",
        f"{len(pixels) - 1} of {len(data)} samples of {data.size} pixels can be read",
        ", ".join(f"{name} {counts[number] / max(1, counts.total()):.2%}" for number, name in names.items()),
        table.assign(**{"no data": frame.isna().mean()}).round(4).to_string(),
        *sorted(refused),
    ])  # fmt: skip
