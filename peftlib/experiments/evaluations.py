"""How far training moved a model on what it was pretrained for: pictures in red, green and blue.

The pretrained model sees the red, green and blue of some scenes. The adapted one sees the same scenes

* with all bands, as it is used (``cka``, ``probe_after``), and
* with the bands beyond RGB held at their mean, where they tell nothing (``cka_rgb``, ``probe_rgb``).

The first moves for what the further bands say too; the second only if RGB itself is read otherwise than before.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from peftlib.data import SpectralScenes
from peftlib.data.dataset import collate
from peftlib.data.simulated.metamers import PAIRS
from peftlib.data.subsets import every_nth
from peftlib.deflect.analysis import linear_cka
from peftlib.methods import Frozen
from peftlib.model.adapted_vit import AdaptedViT, adapt
from peftlib.training.augmentation import resize_image, resize_mask

IMAGES = 192  # at most so many of each part are looked at
UNKNOWN = -1


def moved(model: AdaptedViT, vit: VisionTransformer, train: Dataset, test: Dataset) -> dict[str, float]:
    """Distance of an adapted model from the pretrained one on RGB.

    Args:
        model: trained, in eval mode, normalisation fitted.
        vit: the backbone it was made of.
        train: what the probe is fitted on, test: what all is measured on; samples as of ``EarthDataset``.

    Returns:
        ``cka`` and ``cka_rgb``: linear CKA (Kornblith et al., 2019) of the patch tokens with the pretrained ones, 1 is
        the same up to rotation and scale. Of patches, not of image means: with fewer samples than dimensions CKA is
        near 1 for anything. For segmentation also ``probe_before``: balanced accuracy of a linear probe from pretrained
        tokens to the class that covers most of a patch; ``probe_after``, ``probe_rgb``: of that same probe, not fitted
        again, on the adapted model's tokens.
    """
    white, nodata = model.reflectance.rgb_white, model.reflectance.nodata
    before = adapt(vit, Frozen(), train.bands, train.sensor, model.image_size, white, nodata)
    before = before.to(model.reflectance.mean.device).eval()
    images, truth = seen(test, model)
    tokens = {"before": patch_tokens(before, images), "after": patch_tokens(model, images)}
    tokens["rgb"] = patch_tokens(model, blanked(images, model))
    found = {"cka": linear_cka(tokens["before"], tokens["after"])}
    found["cka_rgb"] = linear_cka(tokens["before"], tokens["rgb"])
    if truth is not None:
        images, fitted = seen(train, model)
        assert fitted is not None  # the same data set as ``test``
        probe = fit_probe(patch_tokens(before, images), fitted)
        found |= {f"probe_{name}": probe_score(probe, features, truth) for name, features in tokens.items()}
    return found


def seen(part: Dataset, model: AdaptedViT) -> tuple[Tensor, Tensor | None]:
    """Images (B, C, H, W) at the model's size, and the class of each patch, (B n,) row by row; None without masks."""
    batch = next(iter(DataLoader(part := every_nth(part, IMAGES), len(part), collate_fn=collate)))
    image = resize_image(batch["image"], model.image_size)
    if "mask" not in batch:
        return image, None
    mask = resize_mask(batch["mask"], model.image_size).long()
    classes = len(part.classes)
    mask = torch.where((mask >= 0) & (mask < classes), mask, UNKNOWN)
    if part.name == SpectralScenes.name:
        mask = visible(mask)
    return image, patch_classes(mask, model.grid_size, classes).flatten()


def visible(mask: Tensor) -> Tensor:
    """Classes of ``spectral_scenes`` -> those that red, green and blue tell apart: the members of a pair are one."""
    return torch.where(mask < 2 * len(PAIRS), mask.div(2, rounding_mode="floor"), mask - len(PAIRS))


def patch_classes(mask: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """The class that covers most of each patch: (B, H, W) -> (B, down, across); where none is known, ``UNKNOWN``."""
    shares = F.one_hot(mask + 1, classes + 1)[..., 1:].movedim(-1, 1).double()
    share, most = F.adaptive_avg_pool2d(shares, grid).max(1)
    return torch.where(share > 0, most, UNKNOWN)


def blanked(images: Tensor, model: AdaptedViT) -> Tensor:
    """Images whose bands beyond RGB are at the mean that the model knows of them: they tell nothing."""
    images = images.clone()
    images[:, model.reflectance.beyond] = model.reflectance.each_date(model.reflectance.mean).to(images)
    return images


@torch.no_grad()
def patch_tokens(model: AdaptedViT, images: Tensor, batch_size: int = 32) -> Tensor:
    """(B, C, H, W) -> (B n, d), on the CPU."""
    device, patches = model.reflectance.mean.device, math.prod(model.grid_size)
    return torch.cat([model(x.to(device))[:, -patches:].flatten(0, 1).cpu() for x in images.split(batch_size)])


def fit_probe(tokens: Tensor, truth: Tensor):
    """A ridge classifier whose strength is chosen by cross-validation. tokens: (n, d), truth: (n,) class numbers."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = truth != UNKNOWN
    probe = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(-1, 5, 13), class_weight="balanced"))
    return probe.fit(tokens[known].double().numpy(), truth[known].numpy())


def probe_score(probe, tokens: Tensor, truth: Tensor) -> float:
    """Mean recall over the classes that occur: chance is one over their number."""
    known = truth != UNKNOWN
    right = probe.predict(tokens[known].double().numpy()) == truth[known].numpy()
    return float(np.mean([right[truth[known].numpy() == kind].mean() for kind in truth[known].unique().numpy()]))
