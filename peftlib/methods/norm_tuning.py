"""Norm tuning: only the normalisation layers are trained (Zhao et al., 2023)."""

from dataclasses import dataclass
from typing import ClassVar

from timm.models.vision_transformer import VisionTransformer

from peftlib.backbones import encoder_parameters
from peftlib.methods.base import InputMethod


@dataclass(frozen=True)
class NormTuning(InputMethod):
    """Train scale and shift of every normalisation layer that tokens pass.

    Attributes: see ``InputMethod``.
    """

    name: ClassVar[str] = "norm_tuning"

    def inject_blocks(self, vit: VisionTransformer) -> None:
        for name, parameter in encoder_parameters(vit).items():
            if "norm" in name:
                parameter.requires_grad_(True)
