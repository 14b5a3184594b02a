"""The metamer test: how well methods tell apart what a camera cannot, on simulated scenes.

python -m peftlib metamers     # writes data/results/spectral_scenes.csv, some minutes on two cores
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from peftlib.adapt import adapt, count_parameters
from peftlib.backbones import load_backbone
from peftlib.batches import resize_image, resize_mask
from peftlib.datasets.metamers import PAIRS
from peftlib.datasets.module import EarthData
from peftlib.datasets.spectral_scenes import SpectralScenes
from peftlib.methods import Deflect, Frozen, LoRA, Method
from peftlib.tasks import Segmentation
from peftlib.training import fit

COLUMNS = ("dataset", "task", "backbone", "method", "seed", "split", "metric", "value", "tuned_percent", "status")
METHODS: dict[str, tuple[Method, float]] = {  # name -> config, learning rate
    "frozen, RGB": (Frozen(), 1e-3),
    "lora": (LoRA(rank=8, alpha=8.0, new_bands="zero", train_patch_embed=True), 2e-3),
    "deflect": (Deflect(), 2e-3),
}
HEAD_LR = 3e-3


def pair_accuracy(scores: Tensor, truth: Tensor) -> dict[str, float]:
    """Share of pixels on which the true member of a pair scores above the other: 0.5 is a coin.

    Args:
        scores: (B, 10, ...) of the classes of ``spectral_scenes``; truth: (B, ...) class numbers.

    Returns:
        by pair, and their mean under ``pairs``.
    """
    found = {}
    for i, name in enumerate(PAIRS):
        member = truth - 2 * i
        inside = (member == 0) | (member == 1)
        second = scores[:, 2 * i + 1] > scores[:, 2 * i]
        found[name] = float((second == (member == 1))[inside].float().mean())
    return found | {"pairs": float(np.mean(list(found.values())))}


def pair_scores(task: Segmentation, loader: Iterable[dict]) -> dict[str, float]:
    """``pair_accuracy`` of a trained task on the scenes of a loader, resized as in training."""
    size = task.model.image_size
    with torch.no_grad():
        scores = [task(resize_image(batch["image"], size).to(task.device)).cpu() for batch in loader]
    truth = [resize_mask(batch["mask"], size) for batch in loader]
    return pair_accuracy(torch.cat(scores), torch.cat(truth))


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

    rows = [train.bands.index(band) for band in bands]
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


def metamer_test(
    folder: str | Path,
    seeds: Sequence[int] = (0, 1, 2),
    scenes: int = 512,
    epochs: int = 6,
    backbone: str = "dinov2_small",
    size: int = 56,
    progress: bool = True,
    methods: Mapping[str, tuple[Method, float]] = METHODS,
) -> pd.DataFrame:
    """Train each method to segment scenes and score it on scenes of other spectra, beside the per-pixel reference.

    For classification of scenes there is the reference alone.

    Args:
        folder: of the runs, which go on where they were.
        seeds: of heads, adapters and the order of scenes; the scenes are the same.
        scenes: to train on, and to test on.
        epochs: without early stopping.
        backbone, size: the model and its image size in pixels.
        methods: name -> config and learning rate.

    Returns:
        a row a run and metric, with ``COLUMNS``.
    """
    train, val, test = (SpectralScenes(s, n, size) for s, n in (("train", scenes), ("val", 64), ("test", scenes)))
    held = [list(part) for part in (train, val, test)]  # made once, not once an epoch
    vit = load_backbone(backbone, image_size=size)
    truth = torch.stack([sample["mask"] for sample in held[2]])
    labelled = [SpectralScenes(split, scenes, size, task="classification") for split in ("train", "test")]
    labels = torch.tensor([sample["label"] for sample in labelled[1]])
    rows = []
    for task, known, sets in (("segmentation", truth, (train, test)), ("classification", labels, labelled)):
        rows += [(task, "colour ceiling", None, 0, "accuracy", colour_ceiling(known))]
        rows += [(task, "colour ceiling", None, 0, "pairs", 0.5)]
        for name, bands in (("forest, RGB", ("B04", "B03", "B02")), ("forest", test.bands)):
            for seed in seeds:
                rows += _rows(task, name, None, seed, *pixel_forest(*sets, bands, seed))
    for name, (method, lr) in methods.items():
        for seed in seeds:
            lightning.seed_everything(seed, verbose=False)
            data = EarthData(*held, batch_size=16, seed=seed)
            model = adapt(vit, method, train.bands).fit_normalization(data.val_dataloader())
            task = Segmentation(model, train.classes, lr=lr, head_lr=HEAD_LR, augment=False)
            run = Path(folder) / f"{name.replace(', ', '_')}_{seed}"
            fit(task, data, run, epochs, seed, patience=None, monitor="loss", accelerator="cpu")
            with torch.no_grad():
                scores = torch.cat([task(batch["image"]) for batch in data.test_dataloader()])
            rows += _rows("segmentation", name, count_parameters(model)["percent"], seed, scores, truth)
            if progress:
                print(f"{name}, seed {seed}: pairs {rows[-1][-1]:.3f}", flush=True)
    table = pd.DataFrame(rows, columns=["task", "method", "tuned_percent", "seed", "metric", "value"])
    table = table.assign(dataset=train.name, backbone=backbone, split="test", status="done")
    return table[list(COLUMNS)]


def _rows(task: str, name: str, percent: float | None, seed: int, scores: Tensor, truth: Tensor) -> list[tuple]:
    metrics = {"accuracy": float((scores.argmax(1) == truth).float().mean())} | pair_accuracy(scores, truth)
    return [(task, name, percent, seed, metric, value) for metric, value in metrics.items()]
