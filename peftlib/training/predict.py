"""predict_folder: class maps of a folder of GeoTIFFs, on the grid and in the projection of the images."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from peftlib.files import atomic_path
from peftlib.sensors.reflectance import check_reflectance
from peftlib.training.augmentation import resize_image
from peftlib.training.tasks import Segmentation

NO_CLASS = 255
SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class Predictions:
    """What ``predict_folder`` did.

    Attributes:
        written: maps that were made now.
        skipped: maps that were there already.
        failed: image -> what is wrong with it.
    """

    written: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)


def predict_folder(
    task: Segmentation,
    folder: str | Path,
    out: str | Path,
    bands: Sequence[str],
    scale: float | Mapping[str, float] = 10_000.0,
    offset: float = 0.0,
    fill: float | None = None,
    tile: int | tuple[int, int] | None = None,
    overlap: float = 0.25,
    batch_size: int = 8,
    overwrite: bool = False,
    progress: bool = True,
) -> Predictions:
    """Class maps of all GeoTIFFs in a folder, one a file, under the same names.

    A map is a GeoTIFF of class numbers (uint8, 255 where no band has data) with the image's size, projection and
    transform. Large images are read in overlapping tiles, a strip at a time; where tiles overlap, their probabilities
    are averaged, with weights that fall towards the border of a tile. An image smaller than a tile is continued by its
    mirror image.

    A map appears by rename, so one that is there is whole; called again, only the missing ones are made. A file that
    cannot be read does not stop the others: it is in ``failed``, and a warning at the end names it.

    Args:
        task: a trained ``Segmentation``, on the device that does the work.
        folder: of the images (``.tif``, ``.tiff``; not those of folders inside).
        out: folder for the maps; another one.
        bands: names of the files' bands, in their order; those of the model are picked.
        scale, offset: reflectance is (value + offset) / scale: 10000 and 0 for Sentinel-2, with offset -1000 since
            processing baseline 04.00. A dict gives a scale for each of the model's bands (100 for kelvin x 100).
        fill: stored value of pixels without data, where the files do not declare it.
        tile: side, or (H, W), in the image's pixels, of what the model sees at once; it is enlarged to the model's
            image size. None is that size. Give the size of the training images where those were enlarged.
        overlap: of neighbouring tiles, as a share of their side.
        batch_size: tiles at a time.
        overwrite: make maps anew that are there.
        progress: show a progress bar.

    Raises:
        ValueError: arguments that fit no file.
        FileNotFoundError: no images in the folder.
    """
    folder, out = Path(folder), Path(out)
    if folder.resolve() == out.resolve():
        raise ValueError(f"out={str(out)!r} is the folder of the images; maps of the same names would replace them")
    predictor = TiledPredictor(task, bands, scale, offset, fill, tile, overlap, batch_size)
    images = sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not images:
        raise FileNotFoundError(f"no {' or '.join(SUFFIXES)} in {folder}")
    done = Predictions()
    for image in tqdm(images, desc="class maps", disable=not progress):
        target = out / image.name
        if target.is_file() and not overwrite:
            done.skipped.append(target)
            continue
        try:
            predictor.write(image, target)
            done.written.append(target)
        except (OSError, ValueError) as error:
            done.failed[image] = str(error)
    if done.failed:
        names = "; ".join(f"{path.name}: {error}" for path, error in done.failed.items())
        warnings.warn(f"no map of {len(done.failed)} of {len(images)} images: {names}", stacklevel=2)
    return done


class TiledPredictor:
    """Makes class maps of GeoTIFFs. Args: see ``predict_folder``."""

    def __init__(
        self, task: Segmentation, bands: Sequence[str], scale: float | Mapping[str, float] = 10_000.0,
        offset: float = 0.0, fill: float | None = None, tile: int | tuple[int, int] | None = None,
        overlap: float = 0.25, batch_size: int = 8,
    ):  # fmt: skip
        if not isinstance(task, Segmentation):
            raise ValueError(f"class maps need a Segmentation task, got {type(task).__name__}")
        names = task.model.bands.names
        missing = [name for name in names if name not in bands]
        if missing or len(set(bands)) < len(bands):
            raise ValueError(f"bands={tuple(bands)}; the model needs {names}, each once; missing: {missing}")
        scales = scale if isinstance(scale, Mapping) else dict.fromkeys(names, scale)
        if any(not scales.get(name) for name in names):
            raise ValueError(f"scale={scale!r}; give a number other than 0, or one for each of {names}")
        size = task.model.image_size if tile is None else (tile, tile) if isinstance(tile, int) else tuple(tile)
        if min(size) < 1 or not 0 <= overlap < 1 or batch_size < 1:
            raise ValueError(
                f"{tile=}, {overlap=}, {batch_size=}; need pixels, a share from 0 to below 1, and a number"
            )
        if len(task.classes) > NO_CLASS:
            raise ValueError(f"{len(task.classes)} classes; a map of bytes holds {NO_CLASS}")
        self.task, self.count, self.batch_size = task, len(bands), batch_size
        self.numbers = [list(bands).index(name) + 1 for name in names]
        self.scale = np.array([scales[name] for name in names], dtype=np.float32)[:, None, None]
        self.offset, self.fill, self.tile, self.overlap = offset, fill, (size[0], size[1]), overlap

    def write(self, source: str | Path, target: str | Path) -> None:
        """The class map of one GeoTIFF.

        Raises:
            OSError, ValueError: an image that cannot be read, or that the model refuses; the map is not written then.
        """
        rasterio = _rasterio()
        with warnings.catch_warnings(), evaluating(self.task):
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(source) as image:
                if image.count != self.count:
                    raise ValueError(f"it has {image.count} bands, and {self.count} are named")
                where = {"crs": image.crs, "transform": image.transform}
                if image.gcps[0]:
                    where = {"gcps": image.gcps[0], "crs": image.gcps[1]}
                facts = {"width": image.width, "height": image.height, "count": 1, "dtype": "uint8"} | where
                facts |= {"nodata": NO_CLASS, "compress": "deflate", "BIGTIFF": "IF_SAFER", "driver": "GTiff"}
                with atomic_path(Path(target)) as temporary, rasterio.open(temporary, "w", **facts) as file:
                    file.update_tags(classes=", ".join(self.task.classes))
                    for top, classes in self.row_blocks(image):
                        file.write(classes, 1, window=rasterio.windows.Window(0, top, *classes.shape[::-1]))

    def row_blocks(self, image) -> Iterator[tuple[int, np.ndarray]]:
        """Rows of the map from the top down, each once: the first row's number, and classes (rows, W)."""
        (H, W), (h, w) = image.shape, self.tile
        tops, lefts = tile_offsets(H, h, self.overlap), tile_offsets(W, w, self.overlap)
        window = torch.outer(taper(h), taper(w))
        shape = (len(self.task.classes), h, max(W, w))
        total, weight = torch.zeros(shape), torch.zeros(shape[1:])
        for top, following in zip(tops, [*tops[1:], H], strict=True):
            strip = self.read(image, top)
            tiles = torch.stack([strip[..., left : left + w] for left in lefts])
            for left, probabilities in zip(lefts, self.probabilities(tiles), strict=True):
                total[..., left : left + w] += window * probabilities
                weight[:, left : left + w] += window
            rows = following - top  # the strips to come have nothing to add to these
            classes = (total[:, :rows, :W] / weight[:rows, :W]).argmax(0).to(torch.uint8)
            classes[~torch.isfinite(strip[:, :rows, :W]).any(0)] = NO_CLASS
            yield top, classes.numpy()
            for sums in (total, weight):
                sums[..., : h - rows, :] = sums[..., rows:, :].clone()
                sums[..., h - rows :, :] = 0

    def read(self, image, top: int) -> Tensor:
        """Reflectance of a strip of a tile's height: (C, h, W), at least a tile wide, NaN where there is no data."""
        h, w = self.tile
        window = _rasterio().windows.Window(0, top, image.width, min(h, image.height - top))
        values = image.read(self.numbers, window=window, masked=True).astype(np.float32)
        if self.fill is not None:
            values = np.ma.masked_equal(values, self.fill)
        values = (values.filled(np.nan) + self.offset) / self.scale
        model = self.task.model
        check_reflectance(torch.from_numpy(values)[None], model.bands, values.shape[1:], model.reflectance.nodata)
        below, right = h - values.shape[1], max(0, w - values.shape[2])
        return torch.from_numpy(np.pad(values, ((0, 0), (0, below), (0, right)), mode="symmetric"))

    @torch.inference_mode()
    def probabilities(self, tiles: Tensor) -> Tensor:
        """(n, C, h, w) reflectance -> probabilities (n, classes, h, w), on the CPU."""
        found = []
        for batch in tiles.split(self.batch_size):
            logits = self.task(resize_image(batch.to(self.task.device), self.task.model.image_size))
            found.append(resize_image(logits.float().softmax(1), self.tile).cpu())
        return torch.cat(found)


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """A module in eval mode, and each of its parts in its own mode again afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def tile_offsets(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin that cover a length, the first and the last at its ends, with at least that overlap."""
    if length <= tile:
        return [0]
    step = max(1, int(tile * (1 - overlap)))
    count = math.ceil((length - tile) / step) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def taper(length: int) -> Tensor:
    """Weights that fall linearly from the middle of a tile to its borders, and stay above 0: (length,)."""
    position = torch.arange(length) + 0.5
    return torch.minimum(position, length - position)


def _rasterio():
    try:
        import rasterio
        import rasterio.windows
    except ImportError as error:
        raise ImportError(f"GeoTIFFs need the optional extra: pip install 'peftlib[geo]' ({error})") from error
    return rasterio
