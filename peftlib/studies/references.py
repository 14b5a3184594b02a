"""What is known of ``spectral_scenes`` without a vision transformer: the ceiling of colour, and per-pixel forests."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from peftlib.data.simulated.metamers import PAIRS, pair_accuracy
from peftlib.data.simulated.spectral_scenes import SpectralScenes

COLUMNS = ("dataset", "task", "scenes", "method", "seed", "split", "metric", "value")


def colour_ceiling(truth: Tensor) -> float:
    """Best accuracy of red, green and blue: half of the pixels of the pairs, and all others."""
    return 1 - 0.5 * float((truth < 2 * len(PAIRS)).float().mean())


def pixel_forest(
    train: SpectralScenes, test: SpectralScenes, bands: Sequence[str], seed: int = 0
) -> tuple[Tensor, Tensor]:
    """A random forest on the spectra of single pixels, the reference: scores (n, 10) and truth (n,).

    n counts test pixels, or for classification test scenes, whose pixels vote.
    """
    from sklearn.ensemble import RandomForestClassifier

    rows = [train.band_set.names.index(band) for band in bands]
    spectra, truth = _pixels(train)
    forest = RandomForestClassifier(100, min_samples_leaf=2, n_jobs=-1, random_state=seed)
    forest.fit(spectra[:, rows], truth.flatten().numpy())
    spectra, truth = _pixels(test)
    scores = torch.zeros(len(spectra), len(test.classes), dtype=torch.float64)
    scores[:, forest.classes_] = torch.from_numpy(forest.predict_proba(spectra[:, rows]))  # few scenes may lack a class
    if test.task == "classification":
        return scores.unflatten(0, truth.shape).mean(1), truth[:, 0]
    return scores, truth.flatten()


@lru_cache(maxsize=2)  # a training and a test set: forests of other bands and seeds read the same scenes
def _pixels(data: SpectralScenes) -> tuple[np.ndarray, Tensor]:
    """Every fifth pixel of every fifth row: spectra (n, bands), and classes (scenes, pixels)."""
    samples = list(data)
    image = torch.stack([s["image"][:, 2::5, 2::5] for s in samples]).transpose(0, 1).flatten(2)
    if data.task == "classification":
        truth = torch.tensor([s["label"] for s in samples])[:, None].expand(-1, image.shape[2])
    else:
        truth = torch.stack([s["mask"][2::5, 2::5].flatten() for s in samples])
    return image.flatten(1).T.numpy(), truth


def references(scenes: int, size: int, seeds: Sequence[int] = (0, 1, 2), labelled: int = 512) -> pd.DataFrame:
    """What is known of ``spectral_scenes`` without a vision transformer: the ceiling of colour, and per-pixel forests.

    Args:
        scenes: to train the forests on, and to test them on, for segmentation.
        size: of a scene in pixels.
        seeds: of the forests; the scenes are the same.
        labelled: the same for classification, where a scene counts once and not once a pixel.

    Returns:
        a row a reference, seed and metric of the test scenes, with ``COLUMNS``.
    """
    rows = []
    for task, length in (("segmentation", scenes), ("classification", labelled)):
        train, test = (SpectralScenes(split, length, size, task=task) for split in ("train", "test"))
        known = torch.stack([torch.as_tensor(s["mask" if task == "segmentation" else "label"]) for s in test])
        rows += [(task, length, "colour ceiling", 0, "accuracy", colour_ceiling(known))]
        rows += [(task, length, "colour ceiling", 0, "pairs", 0.5)]
        for name, bands in (("forest, RGB", ("B04", "B03", "B02")), ("forest", test.band_set.names)):
            for seed in seeds:
                scores, truth = pixel_forest(train, test, bands, seed)
                metrics = {"accuracy": float((scores.argmax(1) == truth).float().mean())}
                rows += [(task, length, name, seed, *pair) for pair in (metrics | pair_accuracy(scores, truth)).items()]
    table = pd.DataFrame(rows, columns=["task", "scenes", "method", "seed", "metric", "value"])
    return table.assign(dataset=SpectralScenes.name, split="test")[list(COLUMNS)]
