"""GEO-Bench: three classification data sets in one layout, one HDF5 file a sample, list ``default_partition.json``.

* Source: huggingface.co/datasets/recursix/geo-bench-1.0, of the sets that each class below names.
* Files: a file has a data set a band, (H, W), named like ``04 - Red``, with ``_2013-05-01`` behind it where a date is
  known, and one attribute ``pickle``: the text of a pickle of a dict with ``label`` and, for each band, objects of
  GEO-Bench's own classes. Pickles can run code: this reader makes plain values of numbers, and inert stand-ins of all
  else. GEO-Bench itself is not needed.
* Values: stored numbers over ``scale``. No pixels without data, no places.
"""

import ast
import io
import json
import operator
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy._core import multiarray

from peftlib.data.dataset import EarthDataset

PARTS = {"train": "train", "val": "valid", "test": "test"}
ALLOWED: dict[tuple[str, str], Any] = {("numpy", "dtype"): np.dtype}
ALLOWED |= {(f"numpy.{core}.multiarray", "scalar"): multiarray.scalar for core in ("core", "_core")}  # numpy 1, 2


class Inert:
    """What every other class or function becomes: nothing of it is imported or runs, and its state is dropped."""

    def __new__(cls, *_, **__):
        return super().__new__(cls)

    def __setstate__(self, *_):
        pass

    __setitem__ = __setstate__


class PlainUnpickler(pickle.Unpickler):
    """Dicts, lists, numbers and text; no code."""

    def find_class(self, module: str, name: str) -> Any:
        return ALLOWED.get((module, name), Inert)


class GeoBench(EarthDataset):
    """A classification data set of GEO-Bench: subclasses say what its files hold."""

    task = "classification"
    channels: ClassVar[dict[str, str | None]]  # name in the files -> ours, None for what is left out
    source = "https://huggingface.co/datasets/recursix/geo-bench-1.0 (folder classification_v1.0)"

    def find(self) -> list[Path]:
        path = self.there("default_partition.json")
        try:
            return [self.root / f"{name}.hdf5" for name in json.loads(path.read_text())[PARTS[self.split]]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} does not list the samples of {PARTS[self.split]!r} ({error!r})") from error

    def read(self, item: Path) -> dict:
        """ValueError: damaged, other bands than ``channels`` once each, or a label that is no number."""
        import h5py

        if not item.is_file():
            raise FileNotFoundError(f"no file {item}")
        try:
            with h5py.File(item) as file:
                stored = {name: name.partition("_")[::2] for name in file}  # -> band, day
                if sorted(band for band, _ in stored.values()) != sorted(self.channels):
                    raise ValueError(f"bands {list(stored)}, need {list(self.channels)} once each")
                values = {self.channels[band]: file[name][()] for name, (band, _) in stored.items()}
                attributes = PlainUnpickler(io.BytesIO(ast.literal_eval(file.attrs["pickle"]))).load()
            image = torch.from_numpy(np.stack([values[band] for band in self.all_bands]).astype(np.float32))
            label = operator.index(attributes["label"])
        except Exception as error:  # a damaged pickle may raise anything
            raise ValueError(f"{item} is no file of {self.name}; truncated or damaged? ({error!r})") from error
        days = [day for _, day in stored.values() if day]
        meta = {"source": str(item)} | ({"date": days[0]} if days else {})
        return {"image": self.reflectance(image), "label": label, "meta": meta}


# Names of bands in the files.
SENTINEL2 = (
    "01 - Coastal aerosol", "02 - Blue", "03 - Green", "04 - Red", "05 - Vegetation Red Edge",
    "06 - Vegetation Red Edge", "07 - Vegetation Red Edge", "08 - NIR", "08A - Vegetation Red Edge",
    "09 - Water vapour", "10 - SWIR - Cirrus", "11 - SWIR", "12 - SWIR",
)  # fmt: skip
SENTINEL1 = (
    "01 - VH.Real", "02 - VH.Imaginary", "03 - VV.Real", "04 - VV.Imaginary", "05 - VH.LEE Filtered",
    "06 - VV.LEE Filtered", "07 - VH.LEE Filtered.Real", "08 - VV.LEE Filtered.Imaginary",
)  # fmt: skip
LANDSAT8 = ("02 - Blue", "03 - Green", "04 - Red", "05 - NIR", "06 - SWIR1", "07 - SWIR2")


class So2Sat(GeoBench):
    """m-so2sat: local climate zones of cities, 17 classes, 32 px Sentinel-2 chips at 10 m.

    So2Sat LCZ42 (Zhu et al. 2020). 19,992 / 986 / 986 samples. Eight Sentinel-1 channels are left out; ten Sentinel-2
    bands remain, without the 60 m bands. Float reflectance, 0 to 2.8, as it is. No date. CC-BY-4.0.
    """

    name = "so2sat"
    folder = "classification_v1.0/m-so2sat"
    classes = (
        "Compact high rise", "Compact mid rise", "Compact low rise", "Open high rise", "Open mid rise",
        "Open low rise", "Lightweight low rise", "Large low rise", "Sparsely built", "Heavy industry", "Dense trees",
        "Scattered trees", "Bush, scrub", "Low plants", "Bare rock or paved", "Bare soil or sand", "Water",
    )  # fmt: skip
    all_bands = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
    channels = dict.fromkeys(SENTINEL1) | dict(zip((*SENTINEL2[1:9], *SENTINEL2[11:]), all_bands, strict=True))


class BrickKiln(GeoBench):
    """m-brick-kiln: is there a brick kiln, 64 px Sentinel-2 chips of Bangladesh at 10 m.

    SustainBench (Lee et al. 2021). 15,063 / 999 / 999 samples. **The names of bands in the files are wrong**: GEO-Bench
    took the 13 channels for Sentinel-2's 13 bands, but they were exported as B1-B5, B7, B8A, B8, B11, B12 and the red,
    green and blue of the 8-bit true-colour picture (https://github.com/ServiceNow/geo-bench/issues/29). ``channels``
    puts that right; the picture is left out. Reflectance x 1e4. No date. CC-BY-SA-4.0.
    """

    name = "brick_kiln"
    folder = "classification_v1.0/m-brick-kiln"
    classes = ("not brick kiln", "brick kiln")
    all_bands = ("B01", "B02", "B03", "B04", "B05", "B07", "B8A", "B08", "B11", "B12")
    channels = dict(zip(SENTINEL2, (*all_bands, None, None, None), strict=True))  # as exported, not as named
    scale = 1e4


class ForestNet(GeoBench):
    """m-forestnet: what drove the loss of forest in Indonesia, 12 classes, Landsat-8 chips of 332 px at 15 m.

    ForestNet (Irvin et al. 2020). 6,464 / 989 / 993 samples, one date each; composites have the first of January. 8-bit
    **pictures**, stretched for the eye and faded outside the region of loss: divided by 255 this is brightness, not
    reflectance. Indices and default statistics do not carry over; fit the normalisation on the data. CC-BY-4.0.
    """

    name = "forestnet"
    folder = "classification_v1.0/m-forestnet"
    classes = (
        "Oil palm plantation", "Timber plantation", "Other large-scale plantations", "Grassland shrubland",
        "Small-scale agriculture", "Small-scale mixed plantation", "Small-scale oil palm plantation", "Mining",
        "Fish pond", "Logging", "Secondary forest", "Other",
    )  # fmt: skip
    sensor = "landsat8"
    all_bands = ("B2", "B3", "B4", "B5", "B6", "B7")
    channels = dict(zip(LANDSAT8, all_bands, strict=True))
    scale = 255.0
    gsd = 15.0
