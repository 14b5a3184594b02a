"""Class maps of GeoTIFFs, on the grid and in the projection of the images."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from peftlib.files import atomic_path, optional
from peftlib.sensors.reflectance import check_reflectance
from peftlib.training.augmentation import resize_image
from peftlib.training.tasks import Segmentation

NO_CLASS = 255
OVERLAP = 0.25  # of neighbouring tiles; each gives what lies nearer to its middle than to the next one's


def predict_map(
    task: Segmentation, source: str | Path, target: str | Path, bands: Sequence[str],
    scale: float = 10_000.0, offset: float = 0.0, tile: int | None = None,
) -> None:  # fmt: skip
    """The class map of one GeoTIFF, whole or not there at all, with the image's size, projection and transform.

    Its values are class numbers (uint8), 255 where no band has data; the tag ``classes`` names them. The image is read
    in overlapping tiles and continued by mirroring.

    Args:
        task: trained, on the device that does the work; it is put into eval mode.
        source: the image, of any size; target: the map, another file.
        bands: names of the image's bands, in their order; those of the model are picked.
        scale, offset: reflectance is (value + offset) / scale: 10000 and 0 for Sentinel-2, with offset -1000 since
            processing baseline 04.00.
        tile: side in pixels of what is enlarged to the model's image size; None is that size. Give the size of the
            training images where those were enlarged.

    Raises:
        ValueError: an image that cannot be read or does not fit the model; arguments that fit no image.
        OSError: the map cannot be written.
    """
    if not isinstance(task, Segmentation):
        raise ValueError(f"class maps need a Segmentation task, got {type(task).__name__}")
    model, names = task.model, task.model.bands.names
    missing = [name for name in names if name not in bands]
    if missing or len(set(bands)) < len(bands):
        raise ValueError(f"bands={tuple(bands)}; the model needs {names}, each once; missing: {missing}")
    if not scale or (tile is not None and tile < 1):
        raise ValueError(f"scale={scale}, tile={tile}; scale must not be 0, tile at least 1")
    if Path(target).resolve() == Path(source).resolve():
        raise ValueError(f"the map would replace its image {source}; choose another target")
    rasterio, numbers = optional("rasterio"), [list(bands).index(name) + 1 for name in names]
    size = model.image_size if tile is None else (tile, tile)
    task.eval()
    try:
        with rasterio.open(source) as image, atomic_path(Path(target)) as temporary:
            if image.count != len(bands):
                raise ValueError(f"it has {image.count} bands, and {len(bands)} are named")
            facts = {"width": image.width, "height": image.height, "crs": image.crs, "transform": image.transform}
            facts |= {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": NO_CLASS, "compress": "deflate"}
            with rasterio.open(temporary, "w", BIGTIFF="IF_SAFER", **facts) as file:
                file.update_tags(classes=", ".join(task.classes))
                for top, *rows in tiles(image.height, size[0]):
                    window = ((top, min(top + size[0], image.height)), (0, image.width))
                    values = image.read(numbers, window=window, masked=True).astype(np.float32).filled(np.nan)
                    strip = torch.from_numpy((values + offset) / scale)
                    check_reflectance(strip[None], model.bands, (len(strip[0]), image.width), model.reflectance.nodata)
                    for left, *columns in tiles(image.width, size[1]):
                        classes = tile_classes(task, strip[..., left : left + size[1]], size)
                        inner = classes[rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]
                        file.write(inner, 1, window=(tuple(rows), tuple(columns)))
    except (rasterio.errors.RasterioError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error


@torch.inference_mode()
def tile_classes(task: Segmentation, x: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Reflectance (C, h, w) of a tile, at most of that size -> class numbers (h, w)."""
    h, w = x.shape[1:]
    whole = np.pad(x.numpy(), ((0, 0), (0, size[0] - h), (0, size[1] - w)), mode="symmetric")
    logits = task(resize_image(torch.from_numpy(whole)[None].to(task.device), task.model.image_size))
    classes = resize_image(logits.float().softmax(1), size)[0, :, :h, :w].argmax(0).to(torch.uint8).cpu()
    return torch.where(torch.isfinite(x).any(0), classes, NO_CLASS).numpy()


def tiles(length: int, tile: int) -> Iterator[tuple[int, int, int]]:
    """Tiles along a side: where each begins, and from where to where it is kept. The first and last lie at the ends."""
    count = 1 - min(0, tile - length) // max(1, int(tile * (1 - OVERLAP)))
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)] if count > 1 else [0]
    cuts = [0, *((start + before + tile) // 2 for before, start in pairwise(starts)), length]
    yield from zip(starts, cuts[:-1], cuts[1:], strict=True)
