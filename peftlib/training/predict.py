"""Class maps of GeoTIFFs, on the grid and in the projection of the images."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from peftlib.data.reading import reading_of
from peftlib.files import atomic_path, optional
from peftlib.sensors.reflectance import check_reflectance
from peftlib.training.augmentation import resize_image
from peftlib.training.tasks import Classification, Segmentation

NO_CLASS = 255
OVERLAP = 0.25  # of neighbouring tiles; each gives what lies nearer to its middle than to the next one's


def predict_map(
    task: Segmentation | Classification, source: str | Path, target: str | Path, bands: Sequence[str] | None = None,
    scale: float | Sequence[float] | None = None, offset: float | Sequence[float] | None = None,
    tile: int | None = None, overlap: float = OVERLAP,
) -> None:  # fmt: skip
    """The class map of one GeoTIFF, whole or not there at all, with the image's size, projection and transform.

    Its values are class numbers (uint8), 255 where no band has data; the tag ``classes`` names them. The image is read
    in overlapping tiles and continued by mirroring. What is not given is as in training, where the model keeps that
    (``peftlib.data.reading``).

    Args:
        task: trained, on the device that does the work; it is put into eval mode.
        source: the image, of any size; target: the map, another file.
        bands: names of the image's bands, in their order; those of the model are picked.
        scale, offset: reflectance is (value + offset) / scale, one number or one a band of the model; 10000 and 0 if
            nothing was kept. Since Sentinel-2's processing baseline 04.00 the offset is -1000.
        tile: side in pixels of what is enlarged to the model's image size, as training images were; that size if
            nothing was kept. overlap: share that neighbouring tiles have in common; a classifier's map has the class of
            the nearest tile.

    Raises:
        ValueError: an image that cannot be read or does not fit the model; arguments that fit no image.
        OSError: the map cannot be written.
    """
    model = task.model
    reading = reading_of(model.reading, model.bands, bands, scale=scale, offset=offset)
    if (tile is not None and tile < 1) or not 0 <= overlap < 1:
        raise ValueError(f"tile={tile}, overlap={overlap}; tile must be at least 1, overlap from 0 to below 1")
    if Path(target).resolve() == Path(source).resolve():
        raise ValueError(f"the map would replace its image {source}; choose another target")
    rasterio = optional("rasterio")
    down, across = reading.size or model.image_size if tile is None else (tile, tile)
    size = (down, across)
    task.eval()
    try:
        with rasterio.open(source) as image, atomic_path(Path(target)) as temporary:
            reading.check(Path(source), image.count)
            facts = {"width": image.width, "height": image.height, "crs": image.crs, "transform": image.transform}
            facts |= {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": NO_CLASS, "compress": "deflate"}
            with rasterio.open(temporary, "w", BIGTIFF="IF_SAFER", **facts) as file:
                file.update_tags(classes=", ".join(task.classes))
                for top, *rows in tiles(image.height, size[0], overlap):
                    box = (top, 0, min(size[0], image.height - top), image.width)
                    strip = reading.image(Path(source), box, model.bands)
                    check_reflectance(strip[None], model.bands, (len(strip[0]), image.width), model.reflectance.nodata)
                    for left, *columns in tiles(image.width, size[1], overlap):
                        classes = tile_classes(task, strip[..., left : left + size[1]], size)
                        inner = classes[rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]
                        file.write(inner, 1, window=(tuple(rows), tuple(columns)))
    except (rasterio.errors.RasterioError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error


@torch.inference_mode()
def tile_classes(task: Segmentation | Classification, x: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Reflectance (C, h, w) of a tile, at most of that size -> class numbers (h, w)."""
    h, w = x.shape[1:]
    whole = np.pad(x.numpy(), ((0, 0), (0, size[0] - h), (0, size[1] - w)), mode="symmetric")
    logits = task(resize_image(torch.from_numpy(whole)[None].to(task.device), task.model.image_size))
    logits = logits if logits.ndim == 4 else logits[..., None, None].expand(-1, -1, *size)
    classes = resize_image(logits.float().softmax(1), size)[0, :, :h, :w].argmax(0).to(torch.uint8).cpu()
    return torch.where(torch.isfinite(x).any(0), classes, NO_CLASS).numpy()


def tiles(length: int, tile: int, overlap: float = OVERLAP) -> Iterator[tuple[int, int, int]]:
    """Tiles along a side: where each begins, and from where to where it is kept. The first and last lie at the ends."""
    count = 1 - min(0, tile - length) // max(1, int(tile * (1 - overlap)))
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)] if count > 1 else [0]
    cuts = [0, *((start + before + tile) // 2 for before, start in pairwise(starts)), length]
    yield from zip(starts, cuts[:-1], cuts[1:], strict=True)
