"""A user's own folder of GeoTIFFs: what is read, and what is refused by name."""

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

import peftlib as pl
from peftlib.data import collate
from peftlib.data.image_folder import from_folder
from peftlib.sensors.bands import band_set

BANDS = ("B02", "B03", "B04", "B08")
CLASSES = ("forest", "field", "water")


def write(path, values, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = dict(driver="GTiff", count=len(values), height=values.shape[1], width=values.shape[2], dtype=values.dtype)
    profile |= dict(crs="EPSG:32633", transform=from_origin(500000, 5500000, 10, 10)) | options
    with rasterio.open(path, "w", **profile) as file:
        file.write(values)


@pytest.fixture
def chips(tmp_path):
    """Three images in two folders, masks, and a table."""
    draw = np.random.default_rng(0)
    for i, name in enumerate(("a.tif", "b.tif", "deep/c.tif")):
        image = draw.integers(300, 4000, (4, 32, 32)).astype("uint16")
        image[0, :, :] = 1000 * (i + 1)
        write(tmp_path / "chips" / name, image)
        write(tmp_path / "masks" / name, draw.integers(0, 3, (1, 32, 32)).astype("int16"))
    rows = ["file,label,split", "a.tif,forest,train", "b.tif,2,test", "deep/c.tif,field,train"]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    return tmp_path


def labelled(chips, **options):
    return from_folder(chips / "chips", **(dict(bands=BANDS, classes=CLASSES, labels=chips / "labels.csv") | options))


def masked(chips, **options):
    return from_folder(chips / "chips", **(dict(bands=BANDS, classes=CLASSES, masks=chips / "masks") | options))


def test_labels_from_a_table(chips, vit):
    data = labelled(chips)
    assert [s["label"] for s in data] == [0, 2, 1] and data.task == "classification"
    assert data[0]["image"].shape == (4, 32, 32) and float(data[1]["image"][0, 0, 0]) == pytest.approx(0.2)
    latitude, longitude = data[0]["meta"]["location"]
    assert 49 < latitude < 50 and 14.9 < longitude < 15.1 and data[0]["meta"]["source"].endswith("a.tif")
    batch = collate(data)
    assert batch["image"].shape == (3, 4, 32, 32) and batch["label"].tolist() == [0, 2, 1]
    pl.adapt(vit, pl.Deflect(), data.bands)(batch["image"])
    assert [s["label"] for s in labelled(chips, split="train")] == [0, 1]


def test_masks_from_a_folder(chips):
    data = masked(chips, unknown=2)
    with rasterio.open(chips / "masks" / "b.tif") as file:
        stored = torch.from_numpy(file.read(1)).long()
    assert torch.equal(data[1]["mask"], torch.where(stored == 2, -1, stored))
    assert len(data) == 3 and data.task == "segmentation"


def test_masks_by_split(chips):
    for kind in ("chips", "masks"):
        (chips / kind / "val").mkdir()
        (chips / kind / "a.tif").rename(chips / kind / "val" / "a.tif")
    assert [s["meta"]["source"].split("/")[-1] for s in masked(chips, split="val")] == ["a.tif"]


def test_fill_becomes_nan_and_other_scales_work(chips, vit):
    image = np.full((4, 32, 32), 51, dtype="uint8")
    image[:, :4] = 255
    write(chips / "chips" / "a.tif", image)
    write(chips / "chips" / "deep" / "c.tif", image)
    data = labelled(chips, scale=255, fill=255, split="train")
    sample = data[0]["image"]
    assert sample[:, :4].isnan().all() and sample[:, 4:].unique().tolist() == pytest.approx([0.2])
    assert torch.isfinite(pl.adapt(vit, pl.Deflect(), data.bands, nodata="zero")(sample[None])).all()


def test_bands_of_a_users_own_camera(chips):
    bands = {"nir": 833, "red": 665, "green": 560, "blue": 490}
    data = labelled(chips, bands=bands, sensor="custom")
    assert data[0]["bands"] == band_set(bands, "custom") and data.sensor == "custom"


def nans(chips):
    write(chips / "chips" / "a.tif", np.full((4, 32, 32), np.nan, "float32"))
    masked(chips)[0]


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda c: labelled(c, masks=c / "masks"), "labels= .* or masks="),
        (lambda c: from_folder(c / "gone", BANDS, CLASSES, masks=c), "no .tif with a label or a mask in .*gone"),
        (lambda c: labelled(c, labels=c / "gone.csv"), "gone.csv"),
        (lambda c: labelled(c, bands=("B02", "B03", "B08", "B11")), "B04"),
        (lambda c: labelled(c, classes=("forest", "field")), "labels.csv, b: label '2'; classes are"),
        (lambda c: labelled(c, scale=1.0)[0], "a.tif: .*10000 for Sentinel-2"),
        (lambda c: (c / "labels.csv").write_text("name,label\na,0") and labelled(c), r"columns \['name', 'label'\]"),
        (lambda c: (c / "labels.csv").write_text("file,label\nz.tif,0") and labelled(c), "z.tif"),
        (lambda c: (c / "masks" / "b.tif").unlink() or masked(c), "no mask .*'b.tif'"),
        (lambda c: nans(c), "a.tif: .*NaN"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(break_it, says, chips):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        break_it(chips)
