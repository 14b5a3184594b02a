"""Class maps of GeoTIFFs, on the grid and in the projection of the images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from peftlib.files import atomic_path
from peftlib.sensors.reflectance import check_reflectance
from peftlib.training.augmentation import resize_image
from peftlib.training.decoders import optional
from peftlib.training.tasks import Segmentation

NO_CLASS = 255


@dataclass
class TiledPredictor:
    """Makes class maps of GeoTIFFs, which are read in overlapping tiles, a strip at a time, and continued by mirroring.

        predictor = TiledPredictor(task, ("B02", "B03", "B04", "B08"))
        predictor.write("images/a.tif", "maps/a.tif")

    Where tiles overlap, their probabilities are added, with weights that fall linearly towards the border of a tile.

    Args:
        task: a trained ``Segmentation``, on the device that does the work; it is put into eval mode.
        bands: names of the files' bands, in their order; those of the model are picked.
        scale, offset: reflectance is (value + offset) / scale: 10000 and 0 for Sentinel-2, with offset -1000 since
            processing baseline 04.00.
        fill: stored value of pixels without data, where the files do not declare it.
        tile: side in the image's pixels of what is enlarged to the model's image size; None is that size. Give the size
            of the training images where those were enlarged.
        overlap: of neighbouring tiles, as a share of their side; batch_size: tiles at a time.

    Raises:
        ValueError: arguments that fit no file.
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

    def write(self, source: str | Path, target: str | Path) -> None:
        """The class map of one GeoTIFF, whole or not there at all, with the image's size, projection and transform.

        Values are class numbers (uint8), 255 where no band has data; the tag ``classes`` names them.

        Raises:
            ValueError: an image that cannot be read, does not fit the model, or is the target; OSError: no space.
        """
        if Path(target).resolve() == Path(source).resolve():
            raise ValueError(f"the map would replace its image {source}; choose another target")
        rasterio = optional("rasterio")
        try:
            with rasterio.open(source) as image, atomic_path(Path(target)) as temporary:
                self._map(image, temporary)
        except (rasterio.errors.RasterioError, ValueError) as error:
            raise ValueError(f"{source}: {error}") from error

    def _map(self, image, path: Path) -> None:
        if image.count != len(self.bands):
            raise ValueError(f"it has {image.count} bands, and {len(self.bands)} are named")
        facts = {"driver": "GTiff", "width": image.width, "height": image.height, "count": 1, "dtype": "uint8"}
        facts |= {"crs": image.crs, "transform": image.transform, "nodata": NO_CLASS, "compress": "deflate"}
        with optional("rasterio").open(path, "w", BIGTIFF="IF_SAFER", **facts) as file:
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
