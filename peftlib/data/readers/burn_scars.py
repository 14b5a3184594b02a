"""HLS Burn Scars: burnt or not, 804 chips of 512 px at 30 m of the contiguous United States, 2018 to 2021.

* Source: Hugging Face ``ibm-nasa-geospatial/hls_burn_scars``; CC-BY-4.0. ``hls_burn_scars.tar.gz``, 2.6 GB, has the
  sha256 4e6f99a75cb2c500547b20662a15cbd531dc421376f815e91846ea542798e8e6.
* Files: ``subsetted_512x512_HLS.S30.<tile>.<year and day>.v1.4_merged.tif`` with B02, B03, B04, B8A, B11, B12 and
  ``....mask.tif``, in any folders under the root (the publisher's are ``training`` and ``validation``).
* Splits: the publisher's two folders were drawn at random, so that one place lies in both. The leak-free split of
  524 / 160 / 120 is three lists, ``splits/train.txt``, ``val.txt`` and ``test.txt``, a part of a file name a line; they
  come with the model ``ibm-nasa-geospatial/Prithvi-EO-2.0-300M-BurnScars``, folder ``splits``.
* Values: float reflectance, -9999 or 9999 where there is no data. Masks: 0 not burnt, 1 burnt, -1 unknown.
"""

from pathlib import Path

from peftlib.data.dataset import EarthDataset, date_in


class BurnScars(EarthDataset):
    """HLS Burn Scars with the leak-free split; the module says what its files hold."""

    name = "burn_scars"
    folder = "hls_burn_scars"
    classes = ("not burnt", "burnt")
    primary_metric = "iou_burnt"
    sensor = "hls"
    all_bands = ("B02", "B03", "B04", "B8A", "B11", "B12")
    gsd = 30.0
    fill = (-9999.0, 9999.0)
    nodata = "nan"
    source = (
        "https://huggingface.co/datasets/ibm-nasa-geospatial/hls_burn_scars (images) and "
        "https://huggingface.co/ibm-nasa-geospatial/Prithvi-EO-2.0-300M-BurnScars (folder splits)"
    )

    def find(self) -> list[Path]:
        files = sorted(self.root.rglob("*_merged.tif"))
        found = []
        for part in self.read_list(f"splits/{self.split}.txt"):
            matches = [path for path in files if part in path.name]
            if len(matches) != 1:
                raise FileNotFoundError(self.missing(f"image for {part!r} of splits/{self.split}.txt ({len(matches)})"))
            found.append(matches[0])
        return found

    def files(self, item: Path) -> list[Path]:
        return [item, item.with_name(item.name.replace("_merged.tif", ".mask.tif"))]

    def about(self, item: Path) -> dict:
        return {"date": date_in(item, r"\.(\d{7})\.", "%Y%j")}
