"""The two ends of the scale: nothing of the backbone is tuned, or all of it."""

from dataclasses import dataclass
from typing import ClassVar

from timm.models.vision_transformer import VisionTransformer

from peftlib.methods.base import InputMethod, unfreeze


@dataclass(frozen=True)
class Frozen(InputMethod):
    """The pretrained backbone as it is; only a head is trained on top. Attributes: see ``InputMethod``."""

    name: ClassVar[str] = "frozen"


@dataclass(frozen=True)
class Full(InputMethod):
    """Full fine-tuning: every parameter is tuned, the patch embedding included.

    Attributes:
        new_bands: see ``InputMethod``; by default new bands start at zero and are learnt.
        train_patch_embed: False leaves the patch embedding as it was.
    """

    name: ClassVar[str] = "full"
    inflates_rgb_alone: ClassVar[bool] = True
    new_bands: str = "zero"
    train_patch_embed: bool = True

    def inject_blocks(self, vit: VisionTransformer) -> None:
        unfreeze(vit, lambda name: not name.startswith("patch_embed."))
