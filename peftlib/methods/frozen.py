"""The two ends of the scale: nothing of the backbone is tuned, or all of it."""

from dataclasses import dataclass
from typing import ClassVar

from timm.models.vision_transformer import VisionTransformer

from peftlib.backbones import BEYOND_TOKENS
from peftlib.methods.base import InputMethod


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
        # Only what tokens pass. Scale-MAE computes its positions from the ground sampling distance.
        unused = ("pos_embed",) if type(vit).__name__ == "ScaleMAE" else ()
        for name, parameter in vit.named_parameters():
            if not name.startswith((*BEYOND_TOKENS, *unused, "patch_embed.")):
                parameter.requires_grad_(True)
