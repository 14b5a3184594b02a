"""BitFit: only the biases are trained (Ben Zaken et al., 2021)."""

from dataclasses import dataclass
from typing import ClassVar

from timm.models.vision_transformer import VisionTransformer

from peftlib.methods.base import InputMethod, unfreeze


@dataclass(frozen=True)
class BitFit(InputMethod):
    """Train every bias that tokens pass: of linear layers, norms and the patch embedding.

    Attributes: see ``InputMethod``.
    """

    name: ClassVar[str] = "bitfit"

    def inject_blocks(self, vit: VisionTransformer) -> None:
        unfreeze(vit, lambda name: name.endswith("bias"))
