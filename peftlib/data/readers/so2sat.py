"""m-so2sat of GEO-Bench: local climate zones of cities, 17 classes, 32 px Sentinel-2 chips at 10 m.

* Source: So2Sat LCZ42 (Zhu et al. 2020) as GEO-Bench took it; CC-BY-4.0. 19,992 / 986 / 986 samples.
* Files: ``geobench.py`` describes them. Eight Sentinel-1 channels are left out; ten Sentinel-2 bands remain, without
  the 60 m bands B01, B09, B10.
* Values: float reflectance, 0 to 2.8, as it is. No pixels without data, no place, no date.
"""

from peftlib.data.readers.geobench import GeoBench

SENTINEL1 = (
    "01 - VH.Real",
    "02 - VH.Imaginary",
    "03 - VV.Real",
    "04 - VV.Imaginary",
    "05 - VH.LEE Filtered",
    "06 - VV.LEE Filtered",
    "07 - VH.LEE Filtered.Real",
    "08 - VV.LEE Filtered.Imaginary",
)


class So2Sat(GeoBench):
    """m-so2sat; the module says what its files hold."""

    name = "so2sat"
    folder = "classification_v1.0/m-so2sat"
    other_folders = ("m-so2sat",)
    classes = (
        "Compact high rise",
        "Compact mid rise",
        "Compact low rise",
        "Open high rise",
        "Open mid rise",
        "Open low rise",
        "Lightweight low rise",
        "Large low rise",
        "Sparsely built",
        "Heavy industry",
        "Dense trees",
        "Scattered trees",
        "Bush, scrub",
        "Low plants",
        "Bare rock or paved",
        "Bare soil or sand",
        "Water",
    )
    sensor = "sentinel2"
    channels = dict.fromkeys(SENTINEL1) | {
        "02 - Blue": "B02",
        "03 - Green": "B03",
        "04 - Red": "B04",
        "05 - Vegetation Red Edge": "B05",
        "06 - Vegetation Red Edge": "B06",
        "07 - Vegetation Red Edge": "B07",
        "08 - NIR": "B08",
        "08A - Vegetation Red Edge": "B8A",
        "11 - SWIR": "B11",
        "12 - SWIR": "B12",
    }
    all_bands = tuple(band for band in channels.values() if band)
    scale = 1.0
    gsd = 10.0
    licence = "CC-BY-4.0"
