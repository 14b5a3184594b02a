"""Norm tuning: only the normalisation layers are trained (Zhao et al., 2023)."""

from dataclasses import dataclass
from typing import ClassVar

from timm.models.vision_transformer import VisionTransformer

from peftlib.methods.base import InputMethod, unfreeze


@dataclass(frozen=True)
class NormTuning(InputMethod):
    """Train scale and shift of every normalisation layer that tokens pass.

    Attributes: see ``InputMethod``.
    """

    name: ClassVar[str] = "norm_tuning"

    def inject_blocks(self, vit: VisionTransformer) -> None:
        unfreeze(vit, lambda name: "norm" in name)
