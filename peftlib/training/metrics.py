"""Scores of one class a pixel or image, all from one confusion matrix.

A class that neither occurs nor is predicted has no score and counts in no mean. Where nothing counts at all (every
pixel ignored) a score is NaN.
"""

from collections.abc import Sequence

from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix


def class_scores(confusion: Tensor, classes: Sequence[str], ious: bool = False) -> dict[str, Tensor]:
    """Scores of a confusion matrix (classes, classes) of counts, true classes down, predicted ones across.

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

    ``update`` takes predicted and true class numbers of any one shape. After ``compute``, ``never_predicted`` names the
    classes that occur and were predicted nowhere.
    """

    def __init__(self, classes: Sequence[str], ignore_index: int | None = None, ious: bool = False):
        super().__init__(len(classes), ignore_index=ignore_index, validate_args=False)
        self.classes, self.ious = tuple(classes), ious
        self.never_predicted: tuple[str, ...] = ()

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]  # torchmetrics gives the matrix itself
        never = (self.confmat.sum(1) > 0) & (self.confmat.sum(0) == 0)
        self.never_predicted = tuple(name for name, one in zip(self.classes, never.tolist(), strict=True) if one)
        return class_scores(self.confmat, self.classes, self.ious)
