"""The cheap rival that tables forget: only the inflated patch embedding is trained."""

from dataclasses import dataclass
from typing import ClassVar

from peftlib.methods.base import InputMethod


@dataclass(frozen=True)
class PatchEmbedding(InputMethod):
    """Train the patch embedding, inflated to all bands, and leave the blocks as they are.

    Attributes:
        new_bands: see ``InputMethod``; by default new bands start at zero and are learnt.
        train_patch_embed: True; there is nothing else to train.
    """

    name: ClassVar[str] = "patch_embed"
    inflates_rgb_alone: ClassVar[bool] = True
    new_bands: str = "zero"
    train_patch_embed: bool = True
