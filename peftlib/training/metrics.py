"""Scores: all of one class a pixel or image from one confusion matrix, and those of several labels an image.

A class that neither occurs nor is predicted has no score and counts in no mean. Where nothing counts at all (every
pixel ignored, no positive label) a score is NaN.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.functional.classification import binary_average_precision
from torchmetrics.utilities import dim_zero_cat


def class_scores(confusion: Tensor, classes: Sequence[str], ious: bool = False) -> dict[str, Tensor]:
    """Scores of a confusion matrix (classes, classes) of counts, true classes down, predicted ones across.

    Returns:
        ``accuracy``; ``balanced_accuracy``, the mean recall of classes that occur; ``macro_f1``, the mean F1 of classes
        that occur or are predicted; with ``ious``, also ``miou`` and ``iou_<class>``.
    """
    confusion = confusion.double()
    right, true, predicted = confusion.diag(), confusion.sum(1), confusion.sum(0)
    found = {
        "accuracy": right.sum() / confusion.sum(),
        "balanced_accuracy": (right / true).nanmean(),
        "macro_f1": (2 * right / (true + predicted)).nanmean(),
    }
    if ious:
        iou = right / (true + predicted - right)
        found |= {"miou": iou.nanmean()} | {f"iou_{name}": one for name, one in zip(classes, iou, strict=True)}
    return {name: value.float() for name, value in found.items()}


class ClassScores(MulticlassConfusionMatrix):
    """``class_scores`` of all batches; true class numbers of ``ignore_index`` do not count.

    ``update`` takes predicted and true class numbers of any one shape.
    """

    def __init__(self, classes: Sequence[str], ignore_index: int | None = None, ious: bool = False):
        super().__init__(len(classes), ignore_index=ignore_index, validate_args=False)
        self.classes, self.ious = tuple(classes), ious

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]  # torchmetrics gives the matrix itself
        return class_scores(self.confmat, self.classes, self.ious)


class MultilabelScores(Metric):
    """Of several labels an image: ``map`` and ``macro_f1`` (means over classes), ``micro_map`` and ``micro_f1``.

    ``update`` takes probabilities (B, classes) and truth (B, classes) of 0 and 1; F1 counts those above 0.5. A class
    that never occurs has no average precision.
    """

    probabilities: list[Tensor]
    truth: list[Tensor]

    def __init__(self):
        super().__init__()
        self.add_state("probabilities", [], dist_reduce_fx="cat")
        self.add_state("truth", [], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, truth: Tensor) -> None:
        self.probabilities.append(probabilities)
        self.truth.append(truth)

    def compute(self) -> dict[str, Tensor]:
        scores, truth = dim_zero_cat(self.probabilities), dim_zero_cat(self.truth).long()
        said, occurs = scores > 0.5, truth.sum(0) > 0
        right, both = (said & truth.bool()).sum(0).double(), (said.sum(0) + truth.sum(0)).double()
        each = [binary_average_precision(scores[:, i], truth[:, i]) for i in occurs.nonzero().flatten()]
        nan = scores.new_tensor(torch.nan)
        found = {
            "map": torch.stack(each).mean() if each else nan,
            "micro_map": binary_average_precision(scores.flatten(), truth.flatten()) if each else nan,
            "macro_f1": (2 * right / both).nanmean(),
            "micro_f1": 2 * right.sum() / both.sum(),
        }
        return {name: value.float() for name, value in found.items()}
