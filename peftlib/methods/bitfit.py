"""BitFit: only the biases are trained (Ben Zaken et al., 2021)."""

from dataclasses import dataclass
from typing import ClassVar

from timm.models.vision_transformer import VisionTransformer

from peftlib.backbones import encoder_parameters
from peftlib.methods.base import InputMethod


@dataclass(frozen=True)
class BitFit(InputMethod):
    """Train every bias that tokens pass: of linear layers, norms and the patch embedding.

    Attributes: see ``InputMethod``.
    """

    name: ClassVar[str] = "bitfit"

    def inject_blocks(self, vit: VisionTransformer) -> None:
        for name, parameter in encoder_parameters(vit).items():
            if name.endswith("bias"):
                parameter.requires_grad_(True)
