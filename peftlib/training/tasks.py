"""The tasks: classification and segmentation with an adapted ViT. ``peftlib.training.fit.fit`` trains them."""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftlib.model.adapted_vit import AdaptedViT
from peftlib.training.base import Task, class_names
from peftlib.training.decoders import build_decoder
from peftlib.training.metrics import ClassScores


class Classification(Task):
    """One label an image: a linear head on the class token, if there is one, and the mean of the patch tokens.

    Logs ``loss``, ``accuracy``, ``balanced_accuracy`` and ``macro_f1``, see ``peftlib.training.metrics``.

    Args:
        model, classes, recipe: see ``Task``.
    """

    def __init__(self, model: AdaptedViT, classes: int | Sequence[str], **recipe):
        super().__init__(model, classes, ClassScores(class_names(classes)), "macro_f1", **recipe)
        self.has_class_token = model.vit.cls_token is not None
        self.head = nn.Linear(model.vit.embed_dim * (1 + self.has_class_token), len(self.classes))

    def forward(self, x: Tensor, metadata: Tensor | None = None) -> Tensor:
        tokens = self.model(x, metadata)
        mean = tokens[:, -math.prod(self.model.grid_size) :].mean(1)
        return self.head(torch.cat([tokens[:, 0], mean], dim=1) if self.has_class_token else mean)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), target)


class Segmentation(Task):
    """One class a pixel. A batch whose every pixel is ignored has loss 0 and gradient 0.

    Logs ``loss``, ``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``miou`` and ``iou_<class>``. See
    ``peftlib.training.metrics``.

    Args:
        model, classes, recipe: see ``Task``.
        decoder: ``"linear"``, ``"unet"`` or ``"upernet"``.
        ignore_index: label of pixels that do not count.
    """

    truth = "mask"

    def __init__(
        self, model: AdaptedViT, classes: int | Sequence[str], *,
        decoder: str = "linear", ignore_index: int = -1, **recipe,
    ):  # fmt: skip
        names = class_names(classes)
        if 0 <= ignore_index < len(names):
            raise ValueError(f"ignore_index={ignore_index} is a class; give ignored pixels a number of their own")
        super().__init__(model, names, ClassScores(names, ignore_index, ious=True), "miou", **recipe)
        self.decoder = build_decoder(decoder, model, len(names))
        self.decoder_name, self.ignore_index = decoder, ignore_index

    def forward(self, x: Tensor, metadata: Tensor | None = None) -> Tensor:
        if (blocks := self.decoder.blocks) is None:
            return self.decoder(self.model(x, metadata))
        return self.decoder(self.model.intermediate_tokens(x, blocks, metadata))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        total = F.cross_entropy(logits.float(), target, ignore_index=self.ignore_index, reduction="sum")
        return total / self.n_counted(target).clamp_min(1)  # 0, not NaN, where no pixel counts

    def n_counted(self, target: Tensor) -> Tensor:
        return (target != self.ignore_index).sum()

    def facts(self) -> dict:
        return super().facts() | {"decoder": self.decoder_name, "ignore_index": self.ignore_index}


@torch.no_grad()
def predict_batches(task: Task, batches: Iterable[dict], precision: str = "32-true") -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (B, classes, ...) and truth (B, ...) of each batch, resized as in training, on the CPU."""
    for batch in batches:
        batch = task.resized(batch | {"image": batch["image"].to(task.device)})
        with torch.autocast(task.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits = task.logits(batch)
        yield logits.float().cpu(), task.target(batch).cpu()
