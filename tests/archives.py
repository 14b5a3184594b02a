"""Tiny archives of the labelled data sets, in the layouts that their publishers give them."""

import json
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import affine
import h5py
import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from peftlib.data import DATASETS
from peftlib.sensors.bands import band_set

SIZE = 12  # pixels: whole numbers of 20 m and 60 m pixels
UTM = ("EPSG:32632", affine.Affine(10, 0, 500_000, 0, -10, 5_000_000))
UTM_CENTRE = (45.152937, 9.000763)  # latitude and longitude of its middle, by pyproj
NO_PLACE = (None, None)
COARSE = {"B01": 6, "B09": 6} | dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 2)  # 60 m and 20 m


@dataclass
class Archive:
    """One image of a data set and what reading it must give."""

    name: str
    root: Path
    files: list[Path]  # of the image
    store: Callable[[np.ndarray], None]  # writes reflectance (bands, H, W) as the publisher stores it
    image: np.ndarray
    truth: int | np.ndarray
    listed: Path | None = None  # the list of the split
    mask: Path | None = None
    codes: Callable[[np.ndarray], np.ndarray] = lambda mask: mask  # class numbers -> what a mask file holds
    meta: dict = field(default_factory=dict)

    def load(self, **options):
        return DATASETS[self.name](root=self.root, **options)


def write_tif(path: Path, values: np.ndarray, place=UTM) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = values if values.ndim == 3 else values[None]
    crs, transform = place
    shape = dict(count=values.shape[0], height=values.shape[1], width=values.shape[2], dtype=values.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **shape) as file:
            file.write(values)


def write_text(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def digital(image: np.ndarray, scale: float = 1e4) -> np.ndarray:
    """Reflectance as whole numbers, or as floats where whole numbers cannot hold it."""
    numbers = image * scale
    whole = np.isfinite(image).all() and numbers.min() >= 0 and numbers.max() < 65535
    return numbers.round().astype(np.uint16) if whole else numbers.astype(np.float32)


def picture(cls, seed: int = 0, coarse: dict | None = None) -> np.ndarray:
    """Reflectance in steps of 1e-4 (bands, SIZE, SIZE), each band with its own mean; thermal bands in kelvin."""
    draw = np.random.default_rng(seed)
    image = np.round(0.1 + 0.02 * np.arange(len(cls.all_bands))[:, None, None] + 0.1 * draw.random((1, SIZE, SIZE)), 4)
    for i, band in enumerate(cls.all_bands):
        step = (coarse or {}).get(band, 1)
        image[i] = image[i, ::step, ::step].repeat(step, 0).repeat(step, 1)
    for i in band_set(cls.all_bands, cls.sensor).thermal:
        image[i] = np.round(280 + 20 * image[i], 2)
    return image


def sparse_mask(classes: int, nothing: bool = True) -> np.ndarray:
    """Class numbers 0, 1 ... over a mask, -1 in its last row."""
    mask = np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % classes
    mask[-1] = -1 if nothing else 0
    return mask


# --- GEO-Bench -------------------------------------------------------------------------------------------------------


@contextmanager
def foreign_class(module: str, name: str) -> Iterator[type]:
    """A class that can be pickled now and not imported later, as GEO-Bench's are where it is not installed."""
    cls = type(name, (), {"__module__": module})
    made = {module.split(".")[0]: ModuleType(module.split(".")[0]), module: ModuleType(module)}
    setattr(made[module], name, cls)
    sys.modules.update(made)
    try:
        yield cls
    finally:
        for key in made:
            del sys.modules[key]


def write_sample(path: Path, bands: dict[str, np.ndarray], label, place: dict | None = None, pickled=None) -> None:
    """One HDF5 file as GEO-Bench 1.0 writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with foreign_class("geobench.dataset", "Sentinel2") as info:
        entry = {"date": None, "band_info": info(), "transform": None, "crs": None} | (place or {})
        attributes = {"label": label} | dict.fromkeys(bands, entry) | {"bands_order": list(bands)}
        pickled = pickle.dumps(attributes) if pickled is None else pickled
    with h5py.File(path, "w") as file:
        for name, values in bands.items():
            file.create_dataset(name=name, data=values)
        file.attrs["pickle"] = str(pickled)


def geobench(root: Path, name: str, stem: str, to_file, dated: str = "", meta=None) -> Archive:
    cls = DATASETS[name]
    listed = write_text(root / "default_partition.json", json.dumps({"train": [stem], "valid": [], "test": []}))
    path = root / f"{stem}.hdf5"

    def store(image):
        ours = dict(zip(cls.all_bands, to_file(image), strict=True))
        left_out = np.full((SIZE, SIZE), 77)
        bands = {f"{theirs}{dated}": ours.get(band, left_out) for theirs, band in cls.channels.items()}
        write_sample(path, bands, np.int64(1), {"transform": affine.Affine(1e-4, 0, 90, 0, -1e-4, 24)})

    image = picture(cls)
    store(image)
    return Archive(name, root, [path], store, image, 1, listed, meta=meta or {})


def so2sat(root: Path) -> Archive:
    return geobench(root, "so2sat", "id_0001", lambda image: image.astype(np.float32))


def brick_kiln(root: Path) -> Archive:
    return geobench(root, "brick_kiln", "examples_3_7", digital)


def forestnet(root: Path) -> Archive:
    def to_file(image):
        whole = np.isfinite(image).all() and image.max() <= 1
        return (image * 255).round().astype(np.uint8) if whole else (image * 255).astype(np.float32)

    meta = {"date": "2015-06-30"}
    archive = geobench(root, "forestnet", "-4.05_103.5_2015_06_30", to_file, dated="_2015-06-30", meta=meta)
    archive.image = np.round(archive.image * 255) / 255
    return archive


# --- GeoTIFFs --------------------------------------------------------------------------------------------------------


def chips(name, root, path, mask_path, place=UTM, to_file=digital, codes=lambda mask: mask, **more) -> Archive:
    """A data set of one GeoTIFF an image and one a mask."""
    cls = DATASETS[name]
    image, mask = picture(cls), sparse_mask(len(cls.classes))
    write_tif(mask_path, codes(mask).astype(np.int16), place)

    def store(image):
        write_tif(path, to_file(image), place)

    store(image)
    return Archive(name, root, [path], store, image, mask, mask=mask_path, codes=codes, **more)


def burn_scars(root: Path) -> Archive:
    stem = root / "training" / "subsetted_512x512_HLS.S30.T10SEH.2018190.v1.4"
    files = Path(f"{stem}_merged.tif"), Path(f"{stem}.mask.tif")
    listed = write_text(root / "splits" / "train.txt", "T10SEH.2018190.v1")
    more = dict(listed=listed, meta={"date": "2018-07-09", "location": UTM_CENTRE})
    return chips("burn_scars", root, *files, to_file=lambda image: image.astype(np.float32), **more)


def water(root: Path) -> Archive:
    files = root / "images" / "0.tif", root / "masks" / "0.png"

    def to_file(image):
        return digital(image) if not np.isfinite(image).all() else (image * 1e4).round().astype(np.int32)

    archive = chips("water", root, *files, NO_PLACE, to_file, codes=lambda mask: np.where(mask == 1, 255, 0))
    archive.truth = np.maximum(archive.truth, 0)  # what is not water is known not to be
    return archive


def calfire(root: Path) -> Archive:
    """One fire, in one tile."""
    files = root / "images" / "LNU_20200817.tif", root / "masks" / "LNU_20200817.tif"
    listed = write_text(root / "index.csv", "name,height,width,fold,pre", f"LNU_20200817,{SIZE},{SIZE},0,yes")

    def to_file(image):
        return digital(np.nan_to_num(image))

    meta = {"fold": 0, "date": "2020-08-17", "location": UTM_CENTRE}
    more = dict(codes=lambda mask: np.where(mask == -1, 255, mask), listed=listed, meta=meta)
    return chips("calfire", root, *files, to_file=to_file, **more)


def marida(root: Path) -> Archive:
    stem = root / "patches" / "S2_1-12-19_48MYU" / "S2_1-12-19_48MYU_0"
    files = Path(f"{stem}.tif"), Path(f"{stem}_cl.tif")
    listed = write_text(root / "splits" / "train_X.txt", "1-12-19_48MYU_0")
    more = dict(listed=listed, meta={"date": "2019-12-01", "scene": "S2_1-12-19_48MYU", "location": UTM_CENTRE})
    return chips("marida", root, *files, to_file=lambda x: x.astype(np.float32), codes=lambda mask: mask + 1, **more)


def marida_crops(root: Path) -> Archive:
    name = "S2_12-12-20_16PCC_3"
    files = root / "images" / f"{name}.tif", root / "masks" / f"{name}_cl.tif"

    def to_file(image):
        whole = np.isfinite(image).all() and image.max() < 3
        return (image * 1e4).round().astype(np.int16) if whole else image.astype(np.float32)

    meta = {"date": "2020-12-12", "scene": "S2_12-12-20_16PCC"}
    return chips("marida", root, *files, to_file=to_file, codes=lambda mask: mask + 1, meta=meta)


def eurosat(root: Path) -> Archive:
    """torchgeo's layout."""
    path = root / "ds/images/remote_sensing/otherDatasets/sentinel_2/tif/Forest/Forest_7.tif"
    listed = write_text(root / "eurosat-train.txt", "Forest_7.jpg")
    image = picture(DATASETS["eurosat"])

    def store(image):
        write_tif(path, digital(image))

    store(image)
    return Archive("eurosat", root, [path], store, image, 1, listed, meta={"location": UTM_CENTRE})


def mados(root: Path) -> Archive:
    cls = DATASETS["mados"]
    nm = (442, 492, 559, 665, 704, 739, 780, 833, 864, 1610, 2186)  # Sentinel-2B
    folders = [10 * COARSE.get(band, 1) for band in cls.all_bands]
    stems = [f"{folder}/Scene_5_L2R_rhorc_{n}_11.tif" for folder, n in zip(folders, nm, strict=True)]
    paths = [root / "Scene_5" / stem for stem in stems]

    def store(image):
        for path, band, values in zip(paths, cls.all_bands, image, strict=True):
            step = COARSE.get(band, 1)
            write_tif(path, values[::step, ::step].astype(np.float32), NO_PLACE)

    image = picture(cls, coarse=COARSE)
    store(image)
    mask_path, mask = root / "Scene_5" / "10" / "Scene_5_L2R_cl_11.tif", sparse_mask(15)
    write_tif(mask_path, (mask + 1).astype(np.uint8), NO_PLACE)
    listed = write_text(root / "splits" / "train_X.txt", "Scene_5_11")
    meta = {"scene": "Scene_5"}
    return Archive("mados", root, paths, store, image, mask, listed, mask_path, lambda m: m + 1, meta=meta)


MAKERS = [so2sat, brick_kiln, forestnet, burn_scars, mados, eurosat, marida, marida_crops, water, calfire]
ARCHIVES = {make.__name__: make for make in MAKERS}
