"""m-brick-kiln of GEO-Bench: is there a brick kiln, 64 px Sentinel-2 chips of Bangladesh at 10 m.

* Source: SustainBench (Lee et al. 2021) as GEO-Bench took it; CC-BY-SA-4.0. 15,063 / 999 / 999 samples.
* Files: ``geobench.py`` describes them. **The names of bands in the files are wrong**: GEO-Bench took the 13 channels
  for Sentinel-2's 13 bands, but they were exported as B1-B5, B7, B8A, B8, B11, B12 and the red, green and blue of the
  8-bit true-colour picture (https://github.com/ServiceNow/geo-bench/issues/29). ``channels`` puts that right; the
  picture is left out.
* Values: reflectance x 1e4. No pixels without data; the place is in the attributes, no date.
"""

from peftlib.data.readers.geobench import GeoBench


class BrickKiln(GeoBench):
    """m-brick-kiln; the module says what its files hold, and why its names of bands are not the files'."""

    name = "brick_kiln"
    folder = "classification_v1.0/m-brick-kiln"
    other_folders = ("m-brick-kiln",)
    classes = ("not brick kiln", "brick kiln")
    sensor = "sentinel2"
    channels = {  # what the file says -> what it is
        "01 - Coastal aerosol": "B01",
        "02 - Blue": "B02",
        "03 - Green": "B03",
        "04 - Red": "B04",
        "05 - Vegetation Red Edge": "B05",
        "06 - Vegetation Red Edge": "B07",
        "07 - Vegetation Red Edge": "B8A",
        "08 - NIR": "B08",
        "08A - Vegetation Red Edge": "B11",
        "09 - Water vapour": "B12",
        "10 - SWIR - Cirrus": None,  # TCI_R
        "11 - SWIR": None,  # TCI_G
        "12 - SWIR": None,  # TCI_B
    }
    all_bands = tuple(band for band in channels.values() if band)
    scale = 1e-4
    gsd = 10.0
    licence = "CC-BY-SA-4.0"
