"""Simulated scenes as TerraTorch reads them: batches in memory, or a folder of GeoTIFFs."""

from pathlib import Path

import lightning
import numpy as np
import rasterio
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from peftlib.data import load

BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")
CLASSES = 10
SIZE = 56


def samples(split: str, length: int) -> list[dict[str, Tensor]]:
    """image (6, 56, 56) reflectance, mask (56, 56) class numbers; no other key, since TerraTorch hands them on."""
    scenes = load("spectral_scenes", split=split, length=length, size=SIZE, bands=BANDS)
    return [{"image": scenes[i]["image"], "mask": scenes[i]["mask"].long()} for i in range(length)]


class Scenes(lightning.LightningDataModule):
    """All splits in memory."""

    def __init__(self, lengths: dict[str, int], batch_size: int = 8):
        super().__init__()
        self.batch_size = batch_size
        self.parts = {split: samples(split, length) for split, length in lengths.items()}

    def train_dataloader(self) -> DataLoader:
        order = torch.Generator().manual_seed(0)
        return DataLoader(self.parts["train"], self.batch_size, shuffle=True, generator=order, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.parts["val"], self.batch_size)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.parts["test"], self.batch_size)


def write_tiffs(folder: Path, length: int) -> None:
    """``<split>/<i>_image.tif``, reflectance x 1e4 in uint16, and ``<i>_mask.tif``."""
    for split in ("train", "val", "test"):
        (folder / split).mkdir(parents=True)
        for i, sample in enumerate(samples(split, length)):
            image = (sample["image"].clamp(0, 1).numpy() * 1e4).astype(np.uint16)
            for name, pixels in (("image", image), ("mask", sample["mask"].numpy().astype(np.uint8)[None])):
                profile = dict(driver="GTiff", count=len(pixels), height=SIZE, width=SIZE, dtype=pixels.dtype)
                with rasterio.open(folder / split / f"{i}_{name}.tif", "w", **profile) as file:
                    file.write(pixels)
