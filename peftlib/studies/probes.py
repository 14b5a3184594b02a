"""What is in an embedding? Linear probes from patch tokens to radiometric and geometric quantities of the patch."""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from peftlib.sensors.bands import BandSet
from peftlib.sensors.spectral_indices import index_function

RADIOMETRY, COLOUR, GEOMETRY = "radiometry beyond RGB", "radiometry of RGB", "geometry"
KINDS = dict.fromkeys(("NIR", "NDVI", "CVI", "NIR beyond RGB"), RADIOMETRY) | {"red": COLOUR}
KINDS |= dict.fromkeys(("slope down", "slope across", "edge strength"), GEOMETRY)


def patch_targets(image: Tensor, bands: BandSet, nir: str, patch: int, train: np.ndarray | None = None) -> pd.DataFrame:
    """Quantities of each patch (``KINDS``), a column each, n rows.

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
    down, across = _gradient(brightness)
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


def _gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel gradients (down, across) of (B, 1, H, W), edges replicated."""
    kernel = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]], dtype=x.dtype) / -8.0
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernel[None, None]), F.conv2d(padded, kernel.T[None, None].contiguous())


def probe_table(
    features: dict[str, Tensor], targets: pd.DataFrame, train: np.ndarray, test: np.ndarray
) -> pd.DataFrame:
    """Held-out R² of a ridge regression from each set of features to each target.

    The ridge strength is chosen by cross-validation inside the training patches.

    Args:
        features: name -> (n, d).
        targets: n rows.
        train, test: (n,) boolean masks of patches.

    Returns:
        rows targets, columns feature sets; R² can be negative: worse than the mean of the training patches.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.metrics import r2_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    table, truth = {}, targets.to_numpy()
    for name, tokens in features.items():
        X = tokens.double().numpy()
        probe = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-1, 5, 13), alpha_per_target=True))
        said = probe.fit(X[train], truth[train]).predict(X[test])
        table[name] = r2_score(truth[test], said, multioutput="raw_values")
    return pd.DataFrame(table, index=targets.columns)


def pca_rgb(tokens: Tensor, grid: tuple[int, int]) -> np.ndarray:
    """First three principal components of tokens as a picture: (n, d) -> (down, across, 3) in [0, 1]."""
    from sklearn.decomposition import PCA

    scores = PCA(n_components=3, svd_solver="full").fit_transform(tokens.double().numpy())
    low, high = np.percentile(scores, [2, 98], axis=0)
    return np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1).reshape(*grid, 3)


def halves(grid: tuple[int, int], gap: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Left patches to train on and right patches to test on, ``gap`` columns of patches between: two (n,) masks."""
    column = np.tile(np.arange(grid[1]), grid[0])
    middle = grid[1] / 2
    return column < middle - gap / 2, column >= middle + gap / 2
