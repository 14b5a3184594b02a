"""One sample form for every data set, the checks that no reader skips, and the reading of GeoTIFFs."""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from peftlib.files import data_dir, optional
from peftlib.sensors.bands import BandSet, band_set
from peftlib.sensors.reflectance import check_reflectance

NODATA = ("error", "nan")
MAX_VALUES = 2**30  # of an image that is read whole
H5 = (".h5", ".hdf5")
DATASETS: dict[str, type["EarthDataset"]] = {}  # every subclass that has a ``name``


class EarthDataset(Dataset):
    """Images of the Earth with labels. A data set gives its facts and finds its files; the rest is here.

    A sample is a dict: ``image`` (C, H, W) float32 reflectance, channels in the order of ``bands`` (thermal ones in
    kelvin); ``label``, a class number, or ``mask`` (H, W) of them, with ``ignore_index`` where nothing is known;
    ``bands`` and ``sensor``, as ``pl.adapt`` takes them; and ``meta``: ``gsd`` in metres, ``source`` (the file), and,
    where known, ``location`` (latitude, longitude) and ``date`` (YYYY-MM-DD).

    Args:
        split: one of ``splits``.
        root: folder of the files; None is ``folder`` under ``PEFTLIB_DATA``, or another name it has.
        bands: names to read, in this order; None is all. Red, green and blue must be among them.
        nodata: ``"error"`` refuses an image with pixels without data, ``"nan"`` gives them as NaN, for models adapted
            with ``nodata="zero"``; None is the data set's own default.

    Raises:
        ValueError: an unknown split or band; at reading, a file that is damaged or not what it should be.
        FileNotFoundError: a missing file: which, where it should lie, where it comes from.
    """

    name: str  # a class that has one is entered in DATASETS
    folder: ClassVar[str]  # under PEFTLIB_DATA
    other_folders: ClassVar[tuple[str, ...]] = ()  # names that it may have instead
    task: str = "segmentation"  # or "classification"
    classes: tuple[str, ...]
    sensor: str = "sentinel2"
    all_bands: tuple[str, ...]  # in the order of the files
    wavelengths: Mapping[str, float]  # band -> nm, for sensor "custom"
    gsd: float = 10.0  # metres
    splits: tuple[str, ...] = ("train", "val", "test")
    ignore_index: ClassVar[int] = -1
    scale: float = 1.0  # what stored values are divided by to be reflectance
    fill: tuple[float, ...] = ()  # stored values of pixels without data
    nodata: str = "error"
    source: ClassVar[str]  # where people get it
    primary_metric: ClassVar[str | None] = None  # what it is judged by; None: the task's own
    fold_by: ClassVar[str | None] = None  # entry of ``meta``: images that share it are in one fold
    bands: tuple[str, ...] | Mapping[str, float] | BandSet  # as ``pl.adapt`` takes them

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if "name" in vars(cls):
            DATASETS[cls.name] = cls

    def __init__(
        self,
        split: str = "train",
        root: str | Path | None = None,
        bands: Sequence[str] | None = None,
        nodata: str | None = None,
    ):
        if split not in self.splits:
            raise ValueError(f"{self.name} has no split {split!r}; choose from {self.splits}")
        folders = [data_dir() / folder for folder in (self.folder, *self.other_folders)]
        self.root = Path(root or next((folder for folder in folders if folder.is_dir()), folders[0]))
        names = tuple(self.all_bands if bands is None else bands)
        if unknown := [band for band in names if band not in self.all_bands]:
            raise ValueError(f"{self.name} has no bands {unknown}; it has {self.all_bands}")
        self.bands = {band: self.wavelengths[band] for band in names} if self.sensor == "custom" else names
        self.band_set = self.resolve_bands()
        self.split, self.nodata = split, nodata or self.nodata
        if self.nodata not in NODATA:
            raise ValueError(f"nodata={nodata!r}; choose from {NODATA}")
        self.items = self.find()
        if not self.items:
            raise FileNotFoundError(self.missing(f"images of the split {split!r}"))

    def resolve_bands(self) -> BandSet:
        """The chosen bands. Raises ValueError for repeated ones, and without red, green and blue."""
        return band_set(self.bands, self.sensor)

    def find(self) -> Sequence:
        """What there is in the split, an item a sample, without opening images."""
        raise NotImplementedError

    def files(self, item) -> list[Path]:
        """The files that ``read`` opens for an item, image first: what the key of a run hashes."""
        parts = item if isinstance(item, tuple | list) else [item]
        return [part for part in parts if isinstance(part, Path)]

    def read(self, item) -> dict:
        """``image`` (all bands, H, W) reflectance, NaN for no data, ``label`` or ``mask``, ``meta`` with ``source``.

        Here: of GeoTIFFs, one in all or one a band, and of a mask if there is one more file. Labels need their own.
        """
        files, count = self.files(item), len(self.all_bands)
        count = count if len(files) >= count else 1
        values, meta = read_tif(files[0]) if count == 1 else read_bands(files[:count])
        sample = {"image": self.reflectance(values), "meta": meta | {"source": str(files[0])} | self.about(item)}
        for path in files[count:]:
            mask = self.class_numbers(read_mask(path))
            if mask.shape != values.shape[1:]:
                raise ValueError(f"{path}: mask of {tuple(mask.shape)} pixels, image of {tuple(values.shape[1:])}")
            sample["mask"] = mask
        return sample

    def reflectance(self, values: Tensor) -> Tensor:
        """Stored values (bands, H, W) -> reflectance, NaN for no data."""
        image = values.float()
        for fill in self.fill:
            image = torch.where(image == fill, torch.nan, image)
        return image / self.scale

    def class_numbers(self, mask: Tensor) -> Tensor:
        """What a mask file holds (H, W) -> numbers of classes."""
        return mask

    def about(self, item) -> dict:
        """What ``meta`` says beside place and source: ``date``, ..."""
        return {}

    def evaluations(self) -> dict[str, Callable[[Tensor, Tensor], dict[str, float]]]:
        """Tests of its own: name -> function of a split's logits (n, classes, ...) and truth (n, ...), in its order."""
        return {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        return self.checked(self.read(self.items[index]))

    def checked(self, sample: dict) -> dict:
        """What ``read`` gave, with the chosen bands, in the form that all data sets share."""
        meta, image = {"gsd": self.gsd} | sample["meta"], sample["image"]
        try:
            if image.ndim != 3 or image.shape[0] != len(self.all_bands):
                raise ValueError(f"image of shape {tuple(image.shape)}, need ({len(self.all_bands)}, H, W)")
            if self.band_set.names != self.all_bands:
                image = image[[self.all_bands.index(band) for band in self.band_set.names]]
            image, size = image.float(), tuple(image.shape[1:])
            check_reflectance(image[None], self.band_set, size, "error" if self.nodata == "error" else "zero")
            self.check_truth(sample, size)
        except ValueError as error:
            raise ValueError(f"{meta['source']}: {error}") from None
        return sample | {"image": image, "bands": self.bands, "sensor": self.sensor, "meta": meta}

    def check_truth(self, sample: Mapping, size: tuple[int, ...]) -> None:
        """Raise ValueError for a label that is no class, or a mask of another size than the image."""
        count = len(self.classes)
        if self.task == "segmentation":
            mask = sample["mask"]
            if tuple(mask.shape) != size:
                raise ValueError(f"mask of {tuple(mask.shape)} pixels, image of {size}")
            if odd := set(mask.unique().tolist()) - {self.ignore_index, *range(count)}:
                raise ValueError(f"mask holds {sorted(odd)}, classes are 0 to {count - 1}")
        elif not 0 <= int(sample["label"]) < count:
            raise ValueError(f"label {sample['label']}, classes are 0 to {count - 1}")

    def missing(self, what: str | Path) -> str:
        """The message for something that is not there."""
        return (
            f"{self.name}: no {what} in {self.root}. Get it from {self.source} and put it there, or point PEFTLIB_DATA "
            f"to the folder that holds {self.folder}/"
        )

    def there(self, name: str) -> Path:
        """A file under ``root``; FileNotFoundError where it is not there."""
        if not (path := self.root / name).is_file():
            raise FileNotFoundError(self.missing(name))
        return path

    def read_list(self, name: str) -> list[str]:
        """The lines of a text file under ``root``, without empty ones."""
        return [line.strip() for line in self.there(name).read_text(errors="replace").splitlines() if line.strip()]


def collate(samples: Iterable[dict]) -> dict:
    """Samples of one data set -> a batch: tensors stacked, ``bands`` and ``sensor`` once, ``meta`` a list, if there."""
    samples = list(samples)
    batch = default_collate([{k: v for k, v in s.items() if k in ("image", "label", "mask")} for s in samples])
    batch |= {name: samples[0][name] for name in ("bands", "sensor") if name in samples[0]}
    if isinstance(batch.get("bands"), BandSet):  # Lightning moves batches to devices, and refuses frozen dataclasses
        batch["bands"] = batch["bands"].names
    return batch | ({"meta": [s["meta"] for s in samples]} if "meta" in samples[0] else {})


def date_in(path: Path, pattern: str, form: str) -> str:
    """YYYY-MM-DD from a file's name: of the regular expression's group, in a form of ``strptime``; or ValueError."""
    try:
        return datetime.strptime(re.findall(pattern, path.name)[0], form).date().isoformat()
    except (IndexError, ValueError):
        raise ValueError(f"{path}: no date in the name, as {form} in {pattern}") from None


@contextmanager
def opened(path: Path):
    """A raster to read from; of an HDF5 file, its one array (see ``h5_raster``).

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or no image; the message names the file.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    h5 = Path(path).suffix in H5
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # many published chips have no place
            file = h5_raster(path) if h5 else rasterio.open(path)
        with file:
            yield file
    except (RasterioError, OSError, TypeError, ValueError) as error:
        kind = "HDF5 file" if h5 else "GeoTIFF"
        raise ValueError(f"{path} is not a readable {kind}; truncated or damaged? ({error})") from error


def h5_raster(path: Path):
    """The one array of an HDF5 file, float32, in memory. Of its first and last axis the shorter counts channels."""
    found: dict[str, np.ndarray] = {}
    with optional("h5py").File(path) as file:
        file.visititems(lambda name, x: found.update({name: x[()]}) if getattr(x, "ndim", 0) in (2, 3) else None)
    if len(found) != 1:
        raise ValueError(f"it holds the arrays {[*found]}, need one of 2 or 3 axes")
    values = np.atleast_3d(*found.values()).astype(np.float32)
    values = values if values.shape[0] < values.shape[2] else np.moveaxis(values, 2, 0)
    shape = dict(zip(("count", "height", "width"), values.shape, strict=True))
    raster = optional("rasterio").open("", "w+", driver="MEM", dtype="float32", **shape)
    raster.write(values)
    return raster


def read_tif(path: Path) -> tuple[Tensor, dict]:
    """A GeoTIFF: values (bands, H, W) as stored; ``location`` (latitude, longitude of the centre) where it has one.

    Errors are those of ``opened``.
    """
    with opened(path) as file:
        if (count := file.count * file.height * file.width) > MAX_VALUES:
            # a header of a few bytes may promise what no memory holds
            raise ValueError(f"{Path(path).name} has {count:,} values, at most {MAX_VALUES:,} are read; cut it up")
        values = torch.from_numpy(file.read())
        if file.crs is None or file.transform.is_identity:
            return values, {}
        return values, {"location": file.lnglat()[::-1]}


def read_mask(path: Path) -> Tensor:
    """A raster of one band as (H, W) int64, numbers as stored; errors as of ``read_tif``, or for more bands."""
    values, _ = read_tif(path)
    if values.shape[0] != 1:
        raise ValueError(f"{path}: a mask has one band, this has {values.shape[0]}")
    return values[0].long()


def read_bands(paths: Sequence[Path]) -> tuple[Tensor, dict]:
    """GeoTIFFs of one band, of any resolution: (bands, H, W) as stored, on the finest grid by nearest neighbour.

    Raises:
        FileNotFoundError, ValueError: as ``read_tif``, more than one band, or a grid that does not fit the finest.
    """
    read = {path: read_tif(path) for path in paths}
    finest, meta = max(read.values(), key=lambda one: one[0].shape[-1])
    size, layers = finest.shape[-2:], []
    for path, (values, _) in read.items():
        rows, columns = values.shape[-2:]
        if values.shape[0] != 1 or size[0] % rows or size[0] // rows != size[1] / columns:
            raise ValueError(f"{path}: {tuple(values.shape)} values, need one band whose grid fits into {tuple(size)}")
        factor = size[0] // rows
        layers.append(values[0].repeat_interleave(factor, 0).repeat_interleave(factor, 1).float())
    return torch.stack(layers), meta
