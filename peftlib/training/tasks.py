"""The tasks: classification and segmentation with an adapted ViT. ``peftlib.training.fit.fit`` trains them."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftlib.files import optional
from peftlib.model.adapted_vit import AdaptedViT
from peftlib.training.base import Task, class_names
from peftlib.training.decoders import build_decoder
from peftlib.training.metrics import ClassScores


class Classification(Task):
    """One label an image: a linear head on the class token, if there is one, and the mean of the patch tokens.

    Logs ``loss``, ``accuracy``, ``balanced_accuracy`` and ``macro_f1``, see ``peftlib.training.metrics``. For arguments
    see ``Task``.
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
        if self.class_weights is None:
            return F.cross_entropy(logits.float(), target)
        return F.cross_entropy(logits.float(), target, self.class_weights, reduction="sum") / len(target)


class Segmentation(Task):
    """One class a pixel. A batch whose every pixel is ignored has loss 0 and gradient 0.

    Logs ``loss``, ``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``miou`` and ``iou_<class>``. See
    ``peftlib.training.metrics``.

    Args:
        model, classes, recipe: see ``Task``; ignore_index: label of pixels that do not count.
        decoder: ``"linear"``, ``"unet"`` or ``"upernet"``.
        dice: share of the Dice loss (mean over classes, of a batch; segmentation-models-pytorch) in the loss, the rest
            being cross entropy. It counts a rare class as much as a frequent one.
    """

    truth = "mask"

    def __init__(
        self, model: AdaptedViT, classes: int | Sequence[str], *,
        decoder: str = "linear", ignore_index: int = -1, dice: float = 0.0, **recipe,
    ):  # fmt: skip
        names = class_names(classes)
        if 0 <= ignore_index < len(names):
            raise ValueError(f"ignore_index={ignore_index} is a class; give ignored pixels a number of their own")
        if not 0 <= dice <= 1:
            raise ValueError(f"dice={dice!r}; it is a share of the loss, 0 to 1")
        super().__init__(model, names, ClassScores(names, ignore_index, ious=True), "miou", **recipe)
        self.dice_share, self.dice = dice, None
        if dice:
            losses = optional("segmentation_models_pytorch.losses")
            self.dice = losses.DiceLoss("multiclass", ignore_index=ignore_index)
        self.decoder = build_decoder(decoder, model, len(names))
        self.decoder_name, self.ignore_index = decoder, ignore_index

    def forward(self, x: Tensor, metadata: Tensor | None = None) -> Tensor:
        if (blocks := self.decoder.blocks) is None:
            return self.decoder(self.model(x, metadata))
        return self.decoder(self.model.intermediate_tokens(x, blocks, metadata))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        entropy = partial(F.cross_entropy, ignore_index=self.ignore_index, reduction="sum")
        total = entropy(logits.float(), target, self.class_weights)
        mean = total / self.n_counted(target).clamp_min(1)  # 0, not NaN, where no pixel counts
        return mean if self.dice is None else torch.lerp(mean, self.dice(logits.float(), target), self.dice_share)

    def n_counted(self, target: Tensor) -> Tensor:
        return (target != self.ignore_index).sum()

    def facts(self) -> dict:
        own = {"decoder": self.decoder_name, "ignore_index": self.ignore_index, "dice": self.dice_share or None}
        return super().facts() | own


@torch.no_grad()
def predict_batches(task: Task, batches: Iterable[dict], precision: str = "32-true") -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (B, classes, ...) and truth (B, ...) of each batch, resized as in training, on the CPU."""
    for batch in batches:
        batch = task.resized(batch | {"image": batch["image"].to(task.device)})
        with torch.autocast(task.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits = task.logits(batch)
        yield logits.float().cpu(), task.target(batch).cpu()
