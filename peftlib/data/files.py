"""What several readers need: lists of names, masks, one band a file."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from peftlib.data.dataset import EarthDataset, read_tif


def read_list(dataset: EarthDataset, name: str) -> list[str]:
    """The lines of a split list under the data set's root, without empty ones.

    Raises:
        FileNotFoundError: no such list; the message says where it comes from.
    """
    path = dataset.root / name
    if not path.is_file():
        raise FileNotFoundError(dataset.missing(f"split list {name}"))
    return [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]


def read_mask(path: Path) -> Tensor:
    """A GeoTIFF of one band as (H, W) int64, numbers as stored.

    Raises:
        FileNotFoundError, ValueError: as ``read_tif``, or more than one band.
    """
    values, _ = read_tif(path)
    if values.shape[0] != 1:
        raise ValueError(f"{path}: a mask has one band, this has {values.shape[0]}")
    return values[0].long()


def read_bands(paths: Mapping[str, Path]) -> tuple[Tensor, dict]:
    """Band -> GeoTIFF of one band, of any resolution: (bands, H, W) as stored, on the finest grid, nearest neighbour.

    Raises:
        FileNotFoundError, ValueError: as ``read_tif``, more than one band, or a grid that does not fit the finest.
    """
    read = {path: read_tif(path) for path in paths.values()}
    finest = max(read, key=lambda path: read[path][0].shape[-1])
    size = read[finest][0].shape[-2:]
    layers = []
    for path, (values, _) in read.items():
        rows, columns = values.shape[-2:]
        if values.shape[0] != 1 or size[0] % rows or size[0] // rows != size[1] / columns:
            raise ValueError(f"{path}: {tuple(values.shape)} values, need one band whose grid fits into {tuple(size)}")
        factor = size[0] // rows
        layers.append(values[0].repeat_interleave(factor, 0).repeat_interleave(factor, 1).float())
    return torch.stack(layers), read[finest][1]
