"""Class maps of GeoTIFFs, on the grid and in the projection of the images."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from peftlib.data.reading import days_of, reading_of
from peftlib.deflect.time_series import TimeSeriesBands, stack
from peftlib.files import atomic_path, optional
from peftlib.sensors.reflectance import check_reflectance
from peftlib.training.augmentation import resize_image
from peftlib.training.tasks import Classification, Segmentation

NO_CLASS = 255
OVERLAP = 0.25  # of neighbouring tiles; each gives what lies nearer to its middle than to the next one's


def predict_map(
    task: Segmentation | Classification, source: str | Path | Sequence[str | Path], target: str | Path,
    bands: Sequence[str] | None = None, scale: float | Sequence[float] | None = None,
    offset: float | Sequence[float] | None = None, tile: int | None = None, overlap: float = OVERLAP,
    days: Sequence[float] | None = None, probabilities: bool = False,
) -> None:  # fmt: skip
    """The class map of one GeoTIFF, whole or not there at all, with the image's size, projection and transform.

    Its values are class numbers (uint8), 255 where no band has data; the tag ``classes`` names them. The image is read
    in overlapping tiles and continued by mirroring. What is not given is as in training, where the model keeps that
    (``peftlib.data.reading``).

    Args:
        task: trained, on the device that does the work; it is put into eval mode.
        source: the image, of any size; of a time series one a date, all on one grid. target: the map, another file.
        bands: names of an image's bands, in their order; those of the model are picked. None is what was kept.
        scale, offset: reflectance is (value + offset) / scale, one number or one a band of the model; 10000 and 0 if
            nothing was kept. Since Sentinel-2's processing baseline 04.00 the offset is -1000.
        tile: side in pixels of what is enlarged to the model's image size, as training images were; that size if
            nothing was kept. overlap: share that neighbouring tiles have in common; a classifier's map has the class of
            the nearest tile.
        days: of the year, one a file, for a model of ``series_bands``. RGB shows what it did in training.
        probabilities: write those of all classes, a band each (float32, NaN where no band has data).

    ValueError: an image or arguments that do not fit, or cannot be read; OSError: the map cannot be written.
    """
    paths, model = [Path(source)] if isinstance(source, str | Path) else list(map(Path, source)), task.model
    days = days_of(model.reading.get("dates", ())) if days is None else days
    one, dates = getattr(model.bands, "one", model.bands), getattr(model.bands, "dates", 0)  # of a time series
    if len(paths) != max(1, dates) or len(days) != dates:
        need = f"{dates} images and days" if dates else "one image without days"
        raise ValueError(f"{len(paths)} images with days={days}; this model reads {need}")
    reading = reading_of(model.reading, one, bands, scale=scale, offset=offset)
    if (tile is not None and tile < 1) or not 0 <= overlap < 1:
        raise ValueError(f"tile={tile}, overlap={overlap}; tile must be at least 1, overlap from 0 to below 1")
    if Path(target).resolve() in [path.resolve() for path in paths]:
        raise ValueError(f"the map would replace its image {target}; choose another target")
    rasterio = optional("rasterio")
    down, across = reading.size or model.image_size if tile is None else (tile, tile)
    facts: dict = {"driver": "GTiff", "compress": "deflate", "BIGTIFF": "IF_SAFER"}
    facts |= {"count": 1, "dtype": "uint8", "nodata": NO_CLASS}
    if probabilities:
        facts |= {"count": len(task.classes), "dtype": "float32", "nodata": np.nan}
    task.eval()
    grid = reading.grid(paths)
    height, width = grid["height"], grid["width"]
    with atomic_path(Path(target)) as temporary, rasterio.open(temporary, "w", **(grid | facts)) as file:
        file.update_tags(classes=", ".join(task.classes))
        for top, *rows in tiles(height, down, overlap):
            box = (top, 0, down, max(width, across))
            strips = torch.stack([reading.image(path, box, one) for path in paths])
            for path, strip in zip(paths, strips, strict=True):
                try:
                    check_reflectance(strip[None], one, box[2:], model.reflectance.nodata)
                except ValueError as error:
                    raise ValueError(f"{path}: {error}") from error
            for left, *columns in tiles(width, across, overlap):
                made = tile_map(task, strips[..., left : left + across], days, probabilities)
                inner = made[:, rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]
                file.write(inner, window=(tuple(rows), tuple(columns)))


@torch.inference_mode()
def tile_map(
    task: Segmentation | Classification, dates: Tensor, days: Sequence[float], probabilities: bool
) -> np.ndarray:
    """Reflectance (T, C, h, w) of a tile -> class numbers (1, h, w), or probabilities (K, h, w).

    T is 1, or the number of dates.
    """
    x, bands, size = dates[0], task.model.bands, (dates.shape[2], dates.shape[3])
    if isinstance(bands, TimeSeriesBands):
        x = stack(dates, days, bands.one, day=bands.day, rgb=task.model.reading.get("rgb_date", "best"))
    logits = task(resize_image(x[None].to(task.device), task.model.image_size))
    logits = logits if logits.ndim == 4 else logits[..., None, None].expand(-1, -1, *size)
    found = resize_image(logits.float().softmax(1), size)[0].cpu()
    known = torch.isfinite(dates).flatten(0, 1).any(0)
    if probabilities:
        return torch.where(known, found, torch.nan).numpy()
    return torch.where(known, found.argmax(0).to(torch.uint8), NO_CLASS)[None].numpy()


def tiles(length: int, tile: int, overlap: float = OVERLAP) -> Iterator[tuple[int, int, int]]:
    """Tiles along a side: where each begins, and from where to where it is kept. The first and last lie at the ends."""
    count = 1 - min(0, tile - length) // max(1, int(tile * (1 - overlap)))
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)] if count > 1 else [0]
    cuts = [0, *((start + before + tile) // 2 for before, start in pairwise(starts)), length]
    yield from zip(starts, cuts[:-1], cuts[1:], strict=True)
