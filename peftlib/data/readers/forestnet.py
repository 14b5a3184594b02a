"""m-forestnet of GEO-Bench: what drove the loss of forest in Indonesia, 12 classes, Landsat-8 chips at 15 m.

* Source: ForestNet (Irvin et al. 2020) as GEO-Bench took it; CC-BY-4.0. 6,464 / 989 / 993 samples, one date each.
* Files: ``geobench.py`` describes them; blue, green, red, NIR, SWIR1, SWIR2, in the files as red, green, blue, NIR ...
  Chips of 332 px, of which GEO-Bench keeps the middle.
* Values: 8-bit **pictures**, divided by 255 here. They are stretched for the eye, and GEO-Bench faded them outside the
  region of loss, so this is brightness in [0, 1] and not reflectance: indices and statistics of reflectance do not
  carry over; fit the normalisation on the data.
* No pixels without data. The place is in the sample's name, latitude_longitude, the date in the names of the bands;
  composites bear the first of January.
"""

from pathlib import Path

from peftlib.data.readers.geobench import GeoBench


class ForestNet(GeoBench):
    """m-forestnet; the module says what its files hold: pictures, not reflectance."""

    name = "forestnet"
    folder = "classification_v1.0/m-forestnet"
    other_folders = ("m-forestnet",)
    classes = (
        "Oil palm plantation",
        "Timber plantation",
        "Other large-scale plantations",
        "Grassland shrubland",
        "Small-scale agriculture",
        "Small-scale mixed plantation",
        "Small-scale oil palm plantation",
        "Mining",
        "Fish pond",
        "Logging",
        "Secondary forest",
        "Other",
    )
    sensor = "landsat8"
    channels = {
        "02 - Blue": "B2",
        "03 - Green": "B3",
        "04 - Red": "B4",
        "05 - NIR": "B5",
        "06 - SWIR1": "B6",
        "07 - SWIR2": "B7",
    }
    all_bands = tuple(band for band in channels.values() if band is not None)
    scale = 1 / 255
    gsd = 15.0
    licence = "CC-BY-4.0"

    def place(self, item: Path, band: dict | None, size: tuple[int, int]) -> dict:
        try:
            latitude, longitude = (float(part) for part in item.stem.split("_")[:2])
        except ValueError:
            return {}
        return {"location": (latitude, longitude)}
