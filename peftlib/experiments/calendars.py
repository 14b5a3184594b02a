"""The calendar test: how well fields are told apart by when they are green, in simulated time series.

Every run on ``phenology`` is scored by it. What is known of the best scores: ``peftlib.data.simulated.phenology``.
"""

from collections.abc import Iterable

from peftlib.data.simulated import phenology
from peftlib.training.tasks import Segmentation, logits_and_truth


def calendar_scores(task: Segmentation, loader: Iterable[dict], view: str) -> dict[str, float]:
    """Scores of a trained task on whole scenes; with ``view="each"`` its probabilities are averaged over the dates."""
    return phenology.calendar_scores(*logits_and_truth(task, loader), len(phenology.DAYS) if view == "each" else 1)
