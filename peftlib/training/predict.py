"""predict_folder: class maps of a folder of GeoTIFFs, on the grid and in the projection of the images."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from peftlib.files import atomic_path
from peftlib.sensors.reflectance import check_reflectance
from peftlib.training.augmentation import resize_image
from peftlib.training.decoders import optional
from peftlib.training.tasks import Segmentation

NO_CLASS = 255


def predict_folder(
    task: Segmentation, folder: str | Path, out: str | Path, bands: Sequence[str], progress: bool = True, **options
) -> list[Path]:  # fmt: skip
    """Class maps of all GeoTIFFs in a folder, one a file, under the same names. Returns the maps made now.

    A map is a GeoTIFF of class numbers (uint8, 255 where no band has data) with the image's size, projection and
    transform; its tag ``classes`` names them. Called again, only missing maps are made. A file that cannot be read, or
    that the model refuses, does not stop the others: a warning at the end names it.

    Args:
        task: a trained ``Segmentation``, on the device that does the work; it is put into eval mode.
        folder: of the images (``.tif``, ``.tiff``); out: of the maps, another one.
        bands: names of the files' bands, in their order; those of the model are picked.
        options: scale and offset of the stored values, tiles and so on, see ``TiledPredictor``.

    Raises:
        ValueError: arguments that fit no file; FileNotFoundError: no images in the folder.
    """
    folder, out = Path(folder), Path(out)
    if folder.resolve() == out.resolve():
        raise ValueError(f"out={str(out)!r} is the folder of the images; maps of the same names would replace them")
    predictor = TiledPredictor(task, bands, **options)
    images = sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in (".tif", ".tiff"))
    if not images:
        raise FileNotFoundError(f"no .tif or .tiff in {folder}")
    made, failed = [], []
    for image in tqdm(images, desc="class maps", disable=not progress):
        if (target := out / image.name).is_file():
            continue
        try:
            predictor.write(image, target)
            made.append(target)
        except (OSError, ValueError) as error:
            failed.append(f"{image.name}: {error}")
    if failed:
        warnings.warn(f"no map of {len(failed)} of {len(images)} images: {'; '.join(failed)}", stacklevel=2)
    return made


@dataclass
class TiledPredictor:
    """Makes class maps of GeoTIFFs, which are read in overlapping tiles, a strip at a time, and continued by mirroring.

    Where tiles overlap, their probabilities are added, with weights that fall linearly towards the border of a tile.

    Args:
        task, bands: as for ``predict_folder``.
        scale, offset: reflectance is (value + offset) / scale: 10000 and 0 for Sentinel-2, with offset -1000 since
            processing baseline 04.00.
        fill: stored value of pixels without data, where the files do not declare it.
        tile: side in the image's pixels of what is enlarged to the model's image size; None is that size. Give the size
            of the training images where those were enlarged.
        overlap: of neighbouring tiles, as a share of their side; batch_size: tiles at a time.
    """

    task: Segmentation
    bands: Sequence[str]
    scale: float = 10_000.0
    offset: float = 0.0
    fill: float | None = None
    tile: int | None = None
    overlap: float = 0.25
    batch_size: int = 8

    def __post_init__(self):
        if not isinstance(self.task, Segmentation):
            raise ValueError(f"class maps need a Segmentation task, got {type(self.task).__name__}")
        bands, names = list(self.bands), self.task.model.bands.names
        missing = [name for name in names if name not in bands]
        if missing or len(set(bands)) < len(bands):
            raise ValueError(f"bands={tuple(bands)}; the model needs {names}, each once; missing: {missing}")
        self.size = self.task.model.image_size if self.tile is None else (self.tile, self.tile)
        if not self.scale or min(*self.size, self.batch_size) < 1 or not 0 <= self.overlap < 1:
            given = f"scale={self.scale}, tile={self.tile}, batch_size={self.batch_size}, overlap={self.overlap}"
            raise ValueError(f"{given}; scale must not be 0, tile and batch_size at least 1, overlap 0 to below 1")
        self.numbers = [bands.index(name) + 1 for name in names]
        self.task.eval()

    def write(self, source: Path, target: Path) -> None:
        """The class map of one GeoTIFF; where an error comes (OSError, ValueError), none is left."""
        rasterio = optional("rasterio")
        with rasterio.open(source) as image:
            if image.count != len(self.bands):
                raise ValueError(f"it has {image.count} bands, and {len(self.bands)} are named")
            facts = {"driver": "GTiff", "width": image.width, "height": image.height, "count": 1, "dtype": "uint8"}
            facts |= {"crs": image.crs, "transform": image.transform, "nodata": NO_CLASS, "compress": "deflate"}
            with atomic_path(target) as temporary, rasterio.open(temporary, "w", BIGTIFF="IF_SAFER", **facts) as file:
                file.update_tags(classes=", ".join(self.task.classes))
                for top, classes in self.row_blocks(image):
                    file.write(classes, 1, window=((top, top + len(classes)), (0, image.width)))

    def row_blocks(self, image) -> Iterator[tuple[int, np.ndarray]]:
        """Rows of the map from the top down, each once: the first row's number, and classes (rows, W)."""
        (H, W), (h, w) = image.shape, self.size
        tops, lefts = tile_offsets(H, h, self.overlap), tile_offsets(W, w, self.overlap)
        down, across = (torch.minimum(i := torch.arange(side) + 0.5, side - i) for side in (h, w))
        window = down[:, None] * across
        total = torch.zeros(len(self.task.classes), h, max(W, w))
        for top, following in zip(tops, [*tops[1:], H], strict=True):
            strip = self.read(image, top)
            tiles = torch.stack([strip[..., left : left + w] for left in lefts])
            found = torch.cat([self.probabilities(batch) for batch in tiles.split(self.batch_size)])
            for left, probabilities in zip(lefts, found, strict=True):
                total[..., left : left + w] += window * probabilities
            rows = following - top  # the strips to come have nothing to add to these
            classes = total[:, :rows, :W].argmax(0).to(torch.uint8)
            classes[~torch.isfinite(strip[:, :rows, :W]).any(0)] = NO_CLASS
            yield top, classes.numpy()
            total = F.pad(total[:, rows:], (0, 0, 0, rows))

    def read(self, image, top: int) -> Tensor:
        """Reflectance of a strip of a tile's height: (C, h, W), at least a tile wide, NaN where there is no data."""
        (h, w), rows = self.size, (top, min(top + self.size[0], image.height))
        values = image.read(self.numbers, window=(rows, (0, image.width)), masked=True).astype(np.float32)
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
        logits = self.task(resize_image(tiles.to(self.task.device), self.task.model.image_size))
        return resize_image(logits.float().softmax(1), self.size).cpu()


def tile_offsets(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin that cover a length, the first and the last at its ends, with at least that overlap."""
    count = 1 - min(0, tile - length) // max(1, int(tile * (1 - overlap)))
    return [round(i * (length - tile) / max(count - 1, 1)) for i in range(count)]
