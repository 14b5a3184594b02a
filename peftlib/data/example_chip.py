"""The real Sentinel-2 chip that spyndex carries: forest, fields and a river in a savanna, four bands at 10 m."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from peftlib.sensors.bands import band_set
from peftlib.sensors.spectral_indices import index_function

BANDS = ("B02", "B03", "B04", "B08")
SAVANNA_CLASSES = tuple(f"{canopy}, {level} chlorophyll" for canopy in ("open", "closed") for level in ("low", "high"))
NDVI_CLOSED = 0.5


def savanna_chip(upsample: int = 1) -> dict:
    """The chip as one sample, enlarged bilinearly: image (4, 300 * upsample, 300 * upsample), no labels."""
    import spyndex

    image = torch.from_numpy(spyndex.datasets.open("sentinel").sel(band=list(BANDS)).values).float() / 1e4
    if upsample != 1:
        image = F.interpolate(image[None], scale_factor=upsample, mode="bilinear", align_corners=False)[0]
    meta = {"gsd": 10.0 / upsample, "source": "spyndex.datasets.open('sentinel'), Sentinel-2, reflectance x 1e4"}
    return {"image": image, "bands": BANDS, "sensor": "sentinel2", "meta": meta}


def savanna_classes(image: Tensor) -> Tensor:
    """Four per-pixel classes beyond RGB, by index thresholds: (4, H, W) reflectance -> (H, W) in 0..3.

    Open or closed canopy: NDVI against 0.5. Inside each, low or high CVI (chlorophyll vegetation index, N R / G²)
    against its median there. A rule on the spectrum, no ground truth: RGB sees its first half well, its second badly.
    """
    bands = band_set(BANDS)
    ndvi, cvi = (index_function(name, bands)(image[None])[0] for name in ("NDVI", "CVI"))
    closed = ndvi >= NDVI_CLOSED
    high = torch.where(closed, cvi >= cvi[closed].median(), cvi >= cvi[~closed].median())
    return 2 * closed.long() + high.long()


class ChipCrops(Dataset):
    """Random square crops, turned and flipped, from the left (train) or right (test) part of a labelled chip.

    image: (C, H, W) reflectance; mask: (H, W) class numbers; size: side of a crop. Columns ``gap`` wide between the two
    parts keep neighbouring pixels apart. Item i depends on seed and i alone.
    """

    def __init__(self, image: Tensor, mask: Tensor, size: int, part: str, length: int, seed: int = 0, gap: int = 14):
        if part not in ("train", "test"):
            raise ValueError(f"part={part!r}; choose 'train' or 'test'")
        half = image.shape[2] // 2
        columns = slice(0, half - gap // 2) if part == "train" else slice(half + gap - gap // 2, image.shape[2])
        self.image, self.mask = image[:, :, columns], mask[:, columns]
        if size > min(self.image.shape[1:]):
            raise ValueError(f"crops of {size} px do not fit into the {part} half, {tuple(self.image.shape[1:])} px")
        self.size, self.length, self.seed = size, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < self.length:
            raise IndexError(i)
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + i)
        top, left = (int(torch.randint(n - self.size + 1, (), generator=draw)) for n in self.mask.shape)
        window = (..., slice(top, top + self.size), slice(left, left + self.size))
        turns, flip = int(torch.randint(4, (), generator=draw)), bool(torch.randint(2, (), generator=draw))
        image, mask = (torch.rot90(t[window], turns, (-2, -1)) for t in (self.image, self.mask))
        if flip:
            image, mask = image.flip(-1), mask.flip(-1)
        return {"image": image.contiguous(), "mask": mask.contiguous()}
