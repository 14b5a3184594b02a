"""MARIDA, marine debris archive: 15 classes of the sea surface, Sentinel-2 at 10 m, sparse labels; MADOS came after it.

* Source: Kikaki et al. 2022, zenodo.org/records/5151941; CC-BY-4.0. 63 scenes, 1,381 patches of 256 px.
  ``MARIDA.zip``, 1.2 GB, has the md5 9bf32266f6e3711c9dfa3699b856c76f.
* Bands: Sentinel-2 without B09 and B10. Rayleigh-corrected reflectance of ACOLITE.
* The publisher's layout: ``patches/<scene>/<scene>_<n>.tif`` float, ``..._cl.tif`` beside it, lists
  ``splits/<split>_X.txt`` (694 / 328 / 359) of names without ``S2_``.
* Also read: ``images/<scene>_<n>.tif`` (integers: reflectance x 1e4, -32768 no data) and ``masks/<scene>_<n>_cl.tif``,
  as the publisher's test part is passed on, in crops of 128 px. It is split by scene, a day at a place: ``VAL_SCENES``,
  ``TEST_SCENES``, the rest is train. For its 15 scenes that is 218, 77 and 64 patches, without Waves in test.
* Masks: 0 unlabelled (here -1), 1 to 15.
"""

from pathlib import Path

from torch import Tensor

from peftlib.data.dataset import EarthDataset, date_in

VAL_SCENES = ("S2_16-2-18_16PEC", "S2_17-7-16_51PTS", "S2_30-8-18_16PCC")
TEST_SCENES = ("S2_27-1-19_16QED", "S2_3-11-16_16PDC")


class Marida(EarthDataset):
    """MARIDA; the module says what its files hold."""

    name = "marida"
    folder = "MARIDA"
    other_folders = ("marida_test_359_crop128",)
    classes = (
        "Marine Debris", "Dense Sargassum", "Sparse Sargassum", "Natural Organic Material", "Ship", "Clouds",
        "Marine Water", "Sediment-Laden Water", "Foam", "Turbid Water", "Shallow Water", "Waves", "Cloud Shadows",
        "Wakes", "Mixed Water",
    )  # fmt: skip
    fold_by = "scene"
    all_bands = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
    scale = 1e4
    fill = (-32768.0,)
    nodata = "nan"
    source = "https://zenodo.org/records/5151941"

    def find(self) -> list[tuple[Path, Path]]:
        if (self.root / "images").is_dir() and not (self.root / "patches").is_dir():
            images = sorted((self.root / "images").glob("*.tif"))
            masks = self.root / "masks"
            part = dict.fromkeys(VAL_SCENES, "val") | dict.fromkeys(TEST_SCENES, "test")
            images = [path for path in images if part.get(path.stem.rsplit("_", 1)[0], "train") == self.split]
            return [(path, masks / f"{path.stem}_cl.tif") for path in images]
        names = [f"S2_{name}" for name in self.read_list(f"splits/{self.split}_X.txt")]
        folders = [self.root / "patches" / name.rsplit("_", 1)[0] for name in names]
        return [(f / f"{name}.tif", f / f"{name}_cl.tif") for f, name in zip(folders, names, strict=True)]

    def reflectance(self, values: Tensor) -> Tensor:
        return values.float() if values.is_floating_point() else super().reflectance(values)

    def class_numbers(self, mask: Tensor) -> Tensor:
        return mask - 1

    def about(self, item: tuple[Path, Path]) -> dict:
        scene = item[0].stem.rsplit("_", 1)[0]  # a day and a tile: S2_12-12-20_16PCC
        return {"scene": scene, "date": date_in(item[0], r"_(\d+-\d+-\d+)_", "%d-%m-%y")}
