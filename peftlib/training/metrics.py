"""The scores of the studies, through torchmetrics.

A class that neither occurs nor is predicted has no score and counts in no mean; torchmetrics alone would take it, in
some of its means, for a 0. Where nothing counts at all (every pixel is ignored, no label is positive) a score is NaN,
and so is the loss of no pixel.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MulticlassStatScores,
    MultilabelAveragePrecision,
    MultilabelF1Score,
)
from torchmetrics.utilities import dim_zero_cat

NAN = float("nan")


class MeanLoss(Metric):
    """Mean of a loss over all that counts. (torchmetrics' MeanMetric drops NaN or, told to keep it, the weights.)"""

    total: Tensor
    count: Tensor

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, weight: Tensor | int) -> None:
        self.total += loss * weight
        self.count += weight

    def compute(self) -> Tensor:
        return self.total / self.count


class _OfSomething(MulticlassStatScores):
    """A score of torchmetrics that is NaN, not 0, where nothing counts."""

    tp: Tensor
    fn: Tensor

    def compute(self) -> Tensor:
        return torch.where(self.tp.sum() + self.fn.sum() > 0, super().compute(), NAN)


class Accuracy(_OfSomething, MulticlassAccuracy):
    """Share of what counts that is right."""


class MacroF1(_OfSomething, MulticlassF1Score):
    """Mean over classes of F1."""


class BalancedAccuracy(MulticlassConfusionMatrix):
    """Mean recall of the classes that occur, as scikit-learn has it."""

    def compute(self) -> Tensor:
        return (self.confmat.diag() / self.confmat.sum(1)).nanmean()


class IoU(MulticlassJaccardIndex):
    """Intersection over union: ``miou``, the mean over classes, and ``iou_<class>``, NaN where there is none."""

    def __init__(self, classes: Sequence[str], ignore_index: int | None = None):
        super().__init__(
            len(classes), average="none", ignore_index=ignore_index, zero_division=NAN, validate_args=False
        )
        self.classes = tuple(classes)

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]  # a MetricCollection takes both
        each = super().compute()
        return {"miou": each.nanmean()} | {f"iou_{name}": iou for name, iou in zip(self.classes, each, strict=True)}


class MultilabelMacroF1(MultilabelF1Score):
    """Mean over classes of F1."""

    def __init__(self, classes: int):
        super().__init__(classes, average="none")
        self.zero_division = NAN  # its argument may only be 0 or 1

    def compute(self) -> Tensor:
        return super().compute().nanmean()


class MultilabelMicroF1(MultilabelF1Score):
    """F1 of all labels together."""

    def __init__(self, classes: int):
        super().__init__(classes, average="micro")
        self.zero_division = NAN


class MultilabelMAP(MultilabelAveragePrecision):
    """Mean over the classes that occur of average precision."""

    def __init__(self, classes: int):
        super().__init__(classes, average="none")

    def compute(self) -> Tensor:  # type: ignore[override]  # that is of curves
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No positive samples")
            each = super().compute()
        return each[dim_zero_cat(self.target).sum(0) > 0].mean()


class MultilabelMicroMAP(MultilabelAveragePrecision):
    """Average precision of all labels together."""

    def __init__(self, classes: int):
        super().__init__(classes, average="micro")

    def compute(self) -> Tensor:  # type: ignore[override]  # that is of curves
        return torch.where(dim_zero_cat(self.target).sum() > 0, super().compute(), NAN)


def label_metrics(classes: Sequence[str], ignore_index: int | None = None) -> MetricCollection:
    """For one class an item: ``accuracy`` (micro), ``balanced_accuracy``, ``macro_f1``.

    Args:
        classes: their names.
        ignore_index: items of this label do not count.
    """
    n = len(classes)
    options: dict[str, Any] = {"ignore_index": ignore_index, "validate_args": False}
    return MetricCollection(
        {
            "accuracy": Accuracy(n, average="micro", **options),
            "balanced_accuracy": BalancedAccuracy(n, **options),
            "macro_f1": MacroF1(n, average="macro", **options),
        }
    )


def mask_metrics(classes: Sequence[str], ignore_index: int) -> MetricCollection:
    """For one class a pixel: those of ``label_metrics``, ``miou`` and ``iou_<class>``."""
    metrics = label_metrics(classes, ignore_index)
    metrics.add_metrics({"iou": IoU(classes, ignore_index)})
    return metrics


def multilabel_metrics(classes: Sequence[str]) -> MetricCollection:
    """For any number of classes an item: average precision, ``map`` (over classes) and ``micro_map``; F1 likewise."""
    n = len(classes)
    return MetricCollection(
        {
            "map": MultilabelMAP(n),
            "micro_map": MultilabelMicroMAP(n),
            "macro_f1": MultilabelMacroF1(n),
            "micro_f1": MultilabelMicroF1(n),
        }
    )
