"""The calendar test: how well fields are told apart by when they are green, in simulated time series.

Every run on ``phenology`` is scored by it. What is known of the best scores: ``peftlib.data.simulated.phenology``.
"""

from collections.abc import Iterable

from torch import Tensor

from peftlib.data.simulated.phenology import CALENDARS, CLASSES, DAYS
from peftlib.training.metrics import mask_metrics
from peftlib.training.tasks import Segmentation, logits_and_truth


def calendar_scores(task: Segmentation, loader: Iterable[dict], view: str) -> dict[str, float]:
    """Scores of a trained task on whole scenes; with ``view="each"`` its probabilities are averaged over the dates.

    Args:
        loader: batches of ``phenology`` in the order of the data set.
        view: of the data set.

    Returns:
        ``fields``: share of the fields' pixels whose calendar scores above the other five; ``scene_miou``: over all
        classes.
    """
    logits, known = logits_and_truth(task, loader)
    scores = logits.softmax(1)
    if view == "each":
        scores, known = scores.unflatten(0, (-1, len(DAYS))).mean(1), known[:: len(DAYS)]
    metrics = mask_metrics(CLASSES, task.ignore_index)
    metrics.update(scores, known)
    return {"fields": field_accuracy(scores, known), "scene_miou": float(metrics.compute()["miou"])}


def field_accuracy(scores: Tensor, truth: Tensor) -> float:
    """scores: (B, classes, H, W); truth: (B, H, W). Pixels that are no field do not count."""
    right = scores[:, : len(CALENDARS)].argmax(1) == truth
    return float(right[(truth >= 0) & (truth < len(CALENDARS))].float().mean())
