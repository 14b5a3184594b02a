"""Class maps of GeoTIFFs, on the grid and in the projection of the images."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from peftlib.deflect.time_series import TimeSeriesBands, series_bands, stack
from peftlib.files import atomic_path, optional
from peftlib.sensors.bands import BandSet
from peftlib.sensors.reflectance import check_reflectance
from peftlib.training.augmentation import resize_image
from peftlib.training.tasks import Segmentation

NO_CLASS = 255
OVERLAP = 0.25  # of neighbouring tiles; each gives what lies nearer to its middle than to the next one's


def predict_map(
    task: Segmentation, source: str | Path | Sequence[str | Path], target: str | Path, bands: Sequence[str],
    scale: float = 10_000.0, offset: float = 0.0, tile: int | None = None,
    days: Sequence[float] | None = None, probabilities: bool = False,
) -> None:  # fmt: skip
    """The class map of one GeoTIFF, whole or not there at all, with the image's size, projection and transform.

    Its values are class numbers (uint8), 255 where no band has data; the tag ``classes`` names them. The image is read
    in overlapping tiles and continued by mirroring.

    Args:
        task: trained, on the device that does the work; it is put into eval mode.
        source: the image, of any size; of a time series one a date, all on one grid. target: the map, another file.
        bands: names of an image's bands, in their order; those of the model are picked.
        scale, offset: reflectance is (value + offset) / scale: 10000 and 0 for Sentinel-2, with offset -1000 since
            processing baseline 04.00.
        tile: side in pixels of what is enlarged to the model's image size; None is that size. Give the size of the
            training images where those were enlarged.
        days: of the year, one a file, for a model of ``series_bands``. RGB shows the best date of each tile.
        probabilities: write those of all classes, a band each (float32, NaN where no band has data).

    Raises:
        ValueError: an image that cannot be read or does not fit the model; arguments that fit no image.
        OSError: the map cannot be written.
    """
    if not isinstance(task, Segmentation):
        raise ValueError(f"class maps need a Segmentation task, got {type(task).__name__}")
    paths, model = [source] if isinstance(source, str | Path) else list(source), task.model
    one = bands_of_a_file(model.bands, len(paths), days)
    missing = [name for name in one.names if name not in bands]
    if missing or len(set(bands)) < len(bands):
        raise ValueError(f"bands={tuple(bands)}; the model needs {one.names}, each once; missing: {missing}")
    if not scale or (tile is not None and tile < 1):
        raise ValueError(f"scale={scale}, tile={tile}; scale must not be 0, tile at least 1")
    if Path(target).resolve() in [Path(path).resolve() for path in paths]:
        raise ValueError(f"the map would replace its image {target}; choose another target")
    rasterio, numbers = optional("rasterio"), [list(bands).index(name) + 1 for name in one.names]
    size = model.image_size if tile is None else (tile, tile)
    facts: dict = {"driver": "GTiff", "compress": "deflate", "BIGTIFF": "IF_SAFER"}
    facts |= {"count": 1, "dtype": "uint8", "nodata": NO_CLASS}
    if probabilities:
        facts |= {"count": len(task.classes), "dtype": "float32", "nodata": np.nan}
    task.eval()
    path = paths[0]
    try:
        with ExitStack() as opened, atomic_path(Path(target)) as temporary:
            images, places = {}, []
            for path in paths:
                image = images[path] = opened.enter_context(rasterio.open(path))
                places.append({name: image.profile[name] for name in ("height", "width", "crs", "transform")})
                if image.count != len(bands):
                    raise ValueError(f"it has {image.count} bands, and {len(bands)} are named")
                if places[-1] != places[0]:
                    raise ValueError(f"it lies elsewhere than {paths[0]}: {places}")
            with rasterio.open(temporary, "w", **facts, **places[0]) as file:
                file.update_tags(classes=", ".join(task.classes))
                for top, *rows in tiles(image.height, size[0]):
                    window, strips = ((top, min(top + size[0], image.height)), (0, image.width)), []
                    for path in paths:
                        values = images[path].read(numbers, window=window, masked=True).astype(np.float32)
                        strips.append(torch.from_numpy((values.filled(np.nan) + offset) / scale))
                        check_reflectance(strips[-1][None], one, values.shape[1:], model.reflectance.nodata)
                    for left, *columns in tiles(image.width, size[1]):
                        dates = torch.stack([strip[..., left : left + size[1]] for strip in strips])
                        made = tile_map(task, dates, days, size, probabilities)
                        inner = made[:, rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]
                        file.write(inner, window=(tuple(rows), tuple(columns)))
    except (rasterio.errors.RasterioError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def bands_of_a_file(bands: BandSet, files: int, days: Sequence[float] | None) -> BandSet:
    """What each file holds; ValueError but for one file, or one and its day for each date of a time series."""
    if days is None and files == 1:
        return bands
    if not isinstance(bands, TimeSeriesBands) or not files == len(days or ()) == bands.dates:
        need = f"{bands.dates} images and days" if isinstance(bands, TimeSeriesBands) else "one image without days"
        raise ValueError(f"{files} images with days={days}; this model reads {need}")
    return bands.one


@torch.inference_mode()
def tile_map(
    task: Segmentation, dates: Tensor, days: Sequence[float] | None, size: tuple[int, int], probabilities: bool
) -> np.ndarray:
    """Reflectance (T, C, h, w) of a tile, at most of that size -> class numbers (1, h, w), or probabilities (K, h, w).

    T is 1, or the number of dates.
    """
    x, bands, (h, w) = dates[0], task.model.bands, dates.shape[2:]
    if days is not None and isinstance(bands, TimeSeriesBands):
        names = series_bands(bands.one, len(days)).names
        x = stack(dates, days, bands.one)[[names.index(name) for name in bands.names]]
    whole = np.pad(x.numpy(), ((0, 0), (0, size[0] - h), (0, size[1] - w)), mode="symmetric")
    logits = task(resize_image(torch.from_numpy(whole)[None].to(task.device), task.model.image_size))
    found = resize_image(logits.float().softmax(1), size)[0, :, :h, :w].cpu()
    known = torch.isfinite(dates).flatten(0, 1).any(0)
    if probabilities:
        return torch.where(known, found, torch.nan).numpy()
    return torch.where(known, found.argmax(0).to(torch.uint8), NO_CLASS)[None].numpy()


def tiles(length: int, tile: int) -> Iterator[tuple[int, int, int]]:
    """Tiles along a side: where each begins, and from where to where it is kept. The first and last lie at the ends."""
    count = 1 - min(0, tile - length) // max(1, int(tile * (1 - OVERLAP)))
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)] if count > 1 else [0]
    cuts = [0, *((start + before + tile) // 2 for before, start in pairwise(starts)), length]
    yield from zip(starts, cuts[:-1], cuts[1:], strict=True)
