"""What a finished run is scored by beside its metrics: single test images, the data set's own scores, drift on RGB."""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from peftlib.data import collate
from peftlib.data.subsets import every_nth
from peftlib.deflect.analysis import linear_cka
from peftlib.files import atomic_path
from peftlib.methods import Frozen
from peftlib.model.adapted_vit import AdaptedViT, adapt
from peftlib.training.augmentation import resize_image, resize_mask
from peftlib.training.base import Task
from peftlib.training.tasks import Segmentation, predict_batches

IMAGES = 192  # at most so many of each part show drift
UNKNOWN = -1


def evaluate(task: Task, loader: DataLoader, precision: str, file: Path | None = None) -> dict[str, float]:
    """Scores that the data set has of its own, and what is kept of single images.

    Args:
        task: trained, in eval mode.
        loader: of the images, in order.
        file: ``.npz`` to write: ``source``, the names of the images, and of classification ``logits`` (n, classes) and
            ``truth``; of segmentation ``confusion`` (n, classes, classes), true classes down.
    """
    own = loader.dataset.evaluations()
    logits, truth, confusion, classes = [], [], [], len(task.classes)
    for said, known in predict_batches(task, loader, precision):
        if isinstance(task, Segmentation):
            counted = known != task.ignore_index
            pairs = (known * classes + said.argmax(1)).masked_fill(~counted, classes**2).flatten(1)
            counts = F.one_hot(pairs, classes**2 + 1).sum(1)[:, :-1]
            confusion.append(counts.unflatten(1, (classes, classes)).int())
        if own or not isinstance(task, Segmentation):
            logits.append(said)
            truth.append(known)
    if file is not None:
        source = [sample["meta"]["source"] for sample in map(loader.dataset.__getitem__, range(len(loader.dataset)))]
        kept = {"confusion": confusion} if confusion else {"logits": logits, "truth": truth}
        with atomic_path(file) as temporary:
            np.savez_compressed(temporary, source=source, **{name: torch.cat(parts) for name, parts in kept.items()})
    found = [score(torch.cat(logits), torch.cat(truth)) for score in own.values()]
    return {name: value for scores in found for name, value in scores.items()}


def rgb_drift(model: AdaptedViT, vit: VisionTransformer, train: Dataset, test: Dataset) -> dict[str, float]:
    """How far training moved a model on what it was pretrained for: pictures in red, green and blue.

    The pretrained model sees the red, green and blue of some images. The adapted one sees the same images with all
    bands (``cka``, ``probe_after``), and with the bands beyond RGB held at their mean, where they tell nothing
    (``cka_rgb``, ``probe_rgb``). The first moves for what further bands say too; the second only if RGB itself is read
    otherwise than before.

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
    before = adapt(
        vit, Frozen(), model.bands, model.bands.sensor, model.image_size,
        rgb_white=model.reflectance.rgb_white, nodata=model.reflectance.nodata,
    )  # fmt: skip
    before = before.to(model.reflectance.mean.device).eval()
    images, truth = images_and_classes(test, model)
    tokens = {"before": patch_tokens(before, images), "after": patch_tokens(model, images)}
    tokens["rgb"] = patch_tokens(model, with_mean_bands(images, model))
    found = {"cka": linear_cka(tokens["before"], tokens["after"])}
    found["cka_rgb"] = linear_cka(tokens["before"], tokens["rgb"])
    if truth is not None:
        images, fitted = images_and_classes(train, model)
        assert fitted is not None  # the same data set as ``test``
        probe = fit_probe(patch_tokens(before, images), fitted)
        found |= {f"probe_{name}": probe_score(probe, features, truth) for name, features in tokens.items()}
    return found


def images_and_classes(part: Dataset, model: AdaptedViT) -> tuple[Tensor, Tensor | None]:
    """Images (B, C, H, W) at the model's size, and the class of each patch, (B n,) row by row; None without masks.

    Classes that red, green and blue cannot tell apart are one, where the data set says which (its ``rgb_classes``).
    """
    batch = next(iter(DataLoader(part := every_nth(part, IMAGES), len(part), collate_fn=collate)))
    image = resize_image(batch["image"], model.image_size)
    if "mask" not in batch:
        return image, None
    mask, classes = resize_mask(batch["mask"], model.image_size).long(), len(part.classes)
    mask = torch.where((mask >= 0) & (mask < classes), mask, UNKNOWN)
    if (visible := getattr(part, "rgb_classes", None)) is not None:
        mask = torch.where(mask == UNKNOWN, UNKNOWN, visible(mask.clamp_min(0)))
    return image, patch_classes(mask, model.grid_size, classes).flatten()


def patch_classes(mask: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """The class that covers most of each patch: (B, H, W) -> (B, down, across); where none is known, ``UNKNOWN``."""
    shares = F.one_hot(mask + 1, classes + 1)[..., 1:].movedim(-1, 1).double()
    share, most = F.adaptive_avg_pool2d(shares, grid).max(1)
    return torch.where(share > 0, most, UNKNOWN)


def with_mean_bands(images: Tensor, model: AdaptedViT) -> Tensor:
    """Images whose bands beyond RGB are at the mean that the model knows of them: they tell nothing."""
    images = images.clone()
    beyond = model.reflectance.beyond_channels
    images[:, beyond] = model.reflectance.mean.to(images).expand(len(beyond), 1, 1)
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
    from sklearn.metrics import recall_score

    known = truth != UNKNOWN
    said = probe.predict(tokens[known].double().numpy())
    return float(recall_score(truth[known], said, labels=truth[known].unique(), average="macro", zero_division=0))
