"""The paper's five data sets in miniature: few images, of true sizes and types, in their publishers' layouts."""

import json
from pathlib import Path

import affine
import numpy as np
from archives import COARSE, NO_PLACE, UTM, write_sample, write_text, write_tif

from peftlib.data import DATASETS

COUNTS = {"train": 8, "val": 4, "test": 4}
NANOMETRES = (442, 492, 559, 665, 704, 739, 780, 833, 864, 1610, 2186)  # of MADOS, Sentinel-2B


def _scene(draw, classes: int, label: int, bands: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Reflectance (bands, size, size) whose infrared tells the class, and a mask (size, size) of it."""
    mask = (np.arange(size)[:, None] * 4 // size + label + np.zeros(size, int)) % classes
    image = 0.05 + 0.1 * draw.random((bands, size, size), dtype=np.float32)
    image[-2:] += 0.2 * mask / classes
    return image, mask


def _geobench(root: Path, name: str, size: int, to_file, day: str = "") -> None:
    cls, draw, parts, number = DATASETS[name], np.random.default_rng(0), {}, 0
    for split, count in COUNTS.items():
        names = parts["valid" if split == "val" else split] = []
        for _ in range(count):
            number += 1
            image, _ = _scene(draw, len(cls.classes), 0, len(cls.all_bands), size)
            label = number % len(cls.classes)
            image[-2:] += 0.3 * label / len(cls.classes)
            ours = dict(zip(cls.all_bands, to_file(image), strict=True))
            other = np.full((size, size), 77, ours[cls.all_bands[0]].dtype)
            bands = {f"{theirs}{day}": ours.get(band, other) for theirs, band in cls.channels.items()}
            names.append(f"id_{number:04}")
            place = {"transform": affine.Affine(1e-4, 0, 90, 0, -1e-4, 24)}
            write_sample(root / cls.folder / f"{names[-1]}.hdf5", bands, np.int64(label), place)
    write_text(root / cls.folder / "default_partition.json", json.dumps(parts))


def _burn_scars(root: Path) -> None:
    draw, folder, number = np.random.default_rng(0), root / "hls_burn_scars", 0
    for split, count in COUNTS.items():
        names = []
        for _ in range(count):
            number += 1
            names.append(f"T10SEH.2018{number:03}.v1")
            stem = folder / "training" / f"subsetted_512x512_HLS.S30.{names[-1]}.4"
            image, mask = _scene(draw, 2, number, 6, 512)
            image[:, :9], mask[:9] = -9999, -1
            write_tif(Path(f"{stem}_merged.tif"), image, UTM)
            write_tif(Path(f"{stem}.mask.tif"), mask.astype(np.int16), UTM)
        write_text(folder / "splits" / f"{split}.txt", *names)


def _mados(root: Path) -> None:
    cls, draw, folder, number = DATASETS["mados"], np.random.default_rng(0), root / "MADOS", 0
    for split, count in COUNTS.items():
        names = []
        for _ in range(count):
            number += 1
            scene = f"Scene_{number}"
            names.append(f"{scene}_1")
            image, mask = _scene(draw, 15, number, 11, 240)
            mask[::2] = -1
            for band, nm, values in zip(cls.all_bands, NANOMETRES, image, strict=True):
                step = COARSE.get(band, 1)
                path = folder / scene / str(10 * step) / f"{scene}_L2R_rhorc_{nm}_1.tif"
                write_tif(path, values[::step, ::step], NO_PLACE)
            write_tif(folder / scene / "10" / f"{scene}_L2R_cl_1.tif", (mask + 1).astype(np.uint8), NO_PLACE)
        write_text(folder / "splits" / f"{split}_X.txt", *names)


def write_paper_archives(root: Path) -> Path:
    """All five under ``root``, what PEFTLIB_DATA may name."""
    _geobench(root, "so2sat", 32, lambda image: image)
    _geobench(root, "brick_kiln", 64, lambda image: (image * 1e4).astype(np.uint16))
    _geobench(root, "forestnet", 332, lambda image: (image * 255).astype(np.uint8), "_2015-06-30")
    _burn_scars(root)
    _mados(root)
    return root
