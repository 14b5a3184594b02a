"""MARIDA, marine debris archive: 15 classes of the sea surface, Sentinel-2 at 10 m, sparse labels; MADOS came after it.

* Source: Kikaki et al. 2022, zenodo.org/records/5151941; CC-BY-4.0. 63 scenes, 1,381 patches of 256 px.
* Bands: Sentinel-2 without B09 and B10. Rayleigh-corrected reflectance of ACOLITE.
* The publisher's layout: ``patches/<scene>/<scene>_<n>.tif`` float, ``..._cl.tif`` beside it, lists
  ``splits/<split>_X.txt`` (694 / 328 / 359) of names without ``S2_``.
* Also read: ``images/<scene>_<n>.tif`` (integers: reflectance x 1e4, -32768 no data) and ``masks/<scene>_<n>_cl.tif``,
  as the publisher's test part is passed on, in crops of 128 px. It is split by scene, a day at a place (the name before
  the last ``_``): ``VAL_SCENES``, ``TEST_SCENES``, the rest is train. For its 15 scenes that is 218, 77 and 64 patches,
  with all classes in train and val, and all but Waves in test. No scene is in two parts; a place may be, at other days.
* ``task="segmentation"``: 0 unlabelled (here -1), 1 to 15. ``task="multilabel"``: the classes of the mask; the
  publisher's vectors of whole patches also name what a crop cut off. A class that is not named may still be there.
"""

from datetime import datetime
from pathlib import Path

import torch

from peftlib.data.dataset import EarthDataset, read_mask, read_tif
from peftlib.data.download import fetch, unpack

URL, CHECKSUM = "https://zenodo.org/records/5151941/files/MARIDA.zip", "md5:9bf32266f6e3711c9dfa3699b856c76f"
TASKS = ("segmentation", "multilabel")
VAL_SCENES = ("S2_16-2-18_16PEC", "S2_17-7-16_51PTS", "S2_30-8-18_16PCC")
TEST_SCENES = ("S2_27-1-19_16QED", "S2_3-11-16_16PDC")
NO_DATA = -32768


class Marida(EarthDataset):
    """MARIDA; the module says what its files hold.

    Args:
        task: ``"segmentation"`` or ``"multilabel"``.
        options: as of ``EarthDataset``.
    """

    name = "marida"
    folder = "MARIDA"
    other_folders = ("marida_test_359_crop128",)
    task = "segmentation"
    classes = (
        "Marine Debris", "Dense Sargassum", "Sparse Sargassum", "Natural Organic Material", "Ship", "Clouds",
        "Marine Water", "Sediment-Laden Water", "Foam", "Turbid Water", "Shallow Water", "Waves", "Cloud Shadows",
        "Wakes", "Mixed Water",
    )  # fmt: skip
    fold_by = "scene"
    sensor = "sentinel2"
    all_bands = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
    gsd = 10.0
    nodata = "nan"
    source = "https://zenodo.org/records/5151941"
    licence = "CC-BY-4.0"

    def __init__(self, split: str = "train", *, task: str = "segmentation", **options):
        if task not in TASKS:
            raise ValueError(f"task={task!r}; choose from {TASKS}")
        self.task = task
        super().__init__(split, **options)

    def download(self) -> None:
        """The archive, 1.2 GB, beside the folder that it becomes."""
        if not self.root.is_dir():
            unpack(fetch(URL, self.root.parent / "MARIDA.zip", CHECKSUM), self.root)

    def find(self) -> list[tuple[Path, Path]]:
        if (self.root / "images").is_dir() and not (self.root / "patches").is_dir():
            images = sorted((self.root / "images").glob("*.tif"))
            masks = self.root / "masks"
            return [(p, masks / f"{p.stem}_cl.tif") for p in images if part_of(scene_of(p)) == self.split]
        names = [f"S2_{name}" for name in self.read_list(f"splits/{self.split}_X.txt")]
        folders = [self.root / "patches" / name.rsplit("_", 1)[0] for name in names]
        return [(f / f"{name}.tif", f / f"{name}_cl.tif") for f, name in zip(folders, names, strict=True)]

    def read(self, item: tuple[Path, Path]) -> dict:
        path, mask_path = item
        values, meta = read_tif(path)
        image = values.float()
        if not values.is_floating_point():
            image = torch.where(values == NO_DATA, torch.nan, image / 1e4)
        mask = read_mask(mask_path) - 1
        meta |= {"source": str(path), "scene": scene_of(path), "date": date_of(path)}
        if self.task == "segmentation":
            return {"image": image, "mask": mask, "meta": meta}
        if mask.min() < -1 or mask.max() >= len(self.classes):
            raise ValueError(f"{mask_path}: mask holds {(mask + 1).unique().tolist()}, need 0 to {len(self.classes)}")
        label = torch.stack([(mask == number).any() for number in range(len(self.classes))]).float()
        return {"image": image, "label": label, "meta": meta}


def scene_of(path: Path) -> str:
    """``S2_12-12-20_16PCC_0.tif`` -> ``S2_12-12-20_16PCC``: a day and a tile."""
    return path.stem.rsplit("_", 1)[0]


def part_of(scene: str) -> str:
    """The part that a scene belongs to where the publisher's lists are not there."""
    return "val" if scene in VAL_SCENES else "test" if scene in TEST_SCENES else "train"


def date_of(path: Path) -> str:
    """``S2_12-12-20_16PCC_0.tif`` -> ``2020-12-12``: day, month, year of two digits."""
    try:
        return datetime.strptime(path.name.split("_")[1], "%d-%m-%y").date().isoformat()
    except (IndexError, ValueError):
        raise ValueError(f"{path}: no day in the name, as in S2_12-12-20_16PCC_0.tif") from None
