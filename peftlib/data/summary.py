"""What a data set holds, and what will be refused, before any training."""

import warnings
from collections import Counter

import numpy as np

PIXELS = 1000  # of each image that percentiles are made of


def summary(data) -> str:
    """A report of one reading of all samples of an ``EarthDataset``: sizes, classes, values, what is odd or refused."""
    import pandas

    sizes: Counter = Counter()
    counts: Counter = Counter()
    seen, gone, said = [], [], []
    for item in data.items:
        with warnings.catch_warnings(record=True) as odd:
            warnings.simplefilter("always")
            try:
                sample = data.checked(data.read(item))
            except (ValueError, FileNotFoundError) as error:
                said.append(f"refused: {error}")
                continue
        said += [f"odd: {one.message}" for one in odd]
        pixels = sample["image"].flatten(1).numpy()
        sizes[tuple(sample["image"].shape[1:])] += 1
        seen.append(pixels[:, :: pixels.shape[1] // PIXELS + 1])
        gone.append(np.isnan(pixels).mean(1))
        counts.update(sample["mask"].flatten().tolist() if "mask" in sample else [int(sample["label"])])
    try:
        data[0]
    except (ValueError, FileNotFoundError) as error:  # also where all images together are no reflectance
        said.append(f"refused: {error}")
    lines = [f"{count} samples of {size[0]} x {size[1]} pixels" for size, count in sizes.items()]
    total = max(1, sum(counts.values()))
    names = {data.ignore_index: "unknown"} | dict(enumerate(data.classes))
    lines.append(", ".join(f"{name} {counts[number] / total:.2%}" for number, name in names.items()))
    if seen:
        values = np.nanpercentile(np.concatenate(seen, axis=1), (0, 2, 50, 98, 100), axis=1).T
        table = pandas.DataFrame(values, list(data.band_set), ["least", "2%", "median", "98%", "most"])
        lines.append(str(table.assign(**{"no data": np.mean(gone, axis=0)}).round(4)))
    return "\n".join([*lines, *sorted(set(said))])
