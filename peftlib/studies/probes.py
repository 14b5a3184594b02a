"""Radiometric and geometric quantities of patches, for probes of what is in an embedding."""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from peftlib.sensors.bands import BandSet
from peftlib.sensors.spectral_indices import index_function


def patch_targets(image: Tensor, bands: BandSet, nir: str, patch: int, train: np.ndarray | None = None) -> pd.DataFrame:
    """Quantities of each patch, a column each, n rows.

    Radiometric ones are means over the patch; "NIR beyond RGB" is what a linear fit on its mean red, green and blue
    leaves of NIR. Geometric ones are the slope of brightness down and across the patch, and its mean gradient length.

    Args:
        image: (C, H, W) reflectance, H and W multiples of ``patch``.
        nir: name of the near-infrared band.
        train: (n,) mask of the patches that the linear fit may see; None is all.
    """
    if nir not in bands.names:
        raise ValueError(f"nir={nir!r} is not among the bands {bands.names}")
    x = image[None].double()

    def mean(t: Tensor) -> Tensor:  # (1, 1, H, W) -> (n,)
        return F.avg_pool2d(t, patch).flatten()

    near_infrared = mean(x[:, [bands.names.index(nir)]])
    colours = torch.stack([mean(x[:, [i]]) for i in bands.rgb], dim=1)
    design = torch.cat([colours, torch.ones(len(colours), 1, dtype=colours.dtype)], dim=1)
    seen = torch.ones(len(design), dtype=torch.bool) if train is None else torch.from_numpy(train)
    fit = design @ torch.linalg.lstsq(design[seen], near_infrared[seen, None]).solution
    brightness = x[:, list(bands.rgb)].mean(1, keepdim=True)
    sobel = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]], dtype=x.dtype) / -8.0
    padded = F.pad(brightness, (1, 1, 1, 1), mode="replicate")
    down, across = (F.conv2d(padded, kernel[None, None].contiguous()) for kernel in (sobel, sobel.T))
    targets = {
        "NIR": near_infrared,
        "NDVI": mean(index_function("NDVI", bands)(x)[:, None]),
        "CVI": mean(index_function("CVI", bands)(x)[:, None]),
        "NIR beyond RGB": near_infrared - fit[:, 0],
        "red": colours[:, 0],
        "slope down": mean(down),
        "slope across": mean(across),
        "edge strength": mean((down.square() + across.square()).sqrt()),
    }
    return pd.DataFrame({name: value.numpy() for name, value in targets.items()})
