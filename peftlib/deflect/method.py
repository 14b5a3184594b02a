"""DEFLECT: EMB, uAtt and deflection (Thoreau, Marsocci, Derksen, ICCV 2025), as this project defines them."""

from dataclasses import dataclass

from timm.models.vision_transformer import VisionTransformer

from peftlib.deflect.attention import UntangledBlock
from peftlib.deflect.patch_embedding import EMB
from peftlib.methods.base import Method, choose_layers, option


@dataclass(frozen=True)
class Deflect(Method):
    """Untangled attention with the norm constraint, on an input that gives x_A (``EMB``, its default).

    Ablations: ``pl.Frozen()`` on ``pl.EMB()`` is EMB alone, ``constrain=False`` is EMB + uAtt.

    Attributes:
        rank: r of the auxiliary matrices U V, 4 r d parameters a block. 6 puts ViT-L at the published 0.2%.
        layers: which blocks get untangled attention: ``"all"`` or block numbers.
        low_rank_principal: rank of an additional update of W_Q, W_K, W_V for the RGB part; 0 is none.
        constrain: whether a block may only turn a displacement, not lengthen it.
        reference_grad: whether the gradient runs through the length of the reference displacement.
        stream: ``"constant"``: z_A is x_A in every block; ``"carried"``: each block with untangled attention moves it
            by the part of its displacement that the auxiliary values cause (``UntangledBlock``); others leave it.
    """

    name, label, paper = "deflect", "DEFLECT", "Thoreau, Marsocci, Derksen, ICCV 2025"
    learning_rates = (5e-4, 2e-3, 8e-3, 3.2e-2)
    tunes = r"vit\.blocks\.\d+\.auxiliary\.[UV]\.weight"
    needs_auxiliary = True

    rank: int = option(6, other=2, least=1)
    layers: str | tuple[int, ...] = option("all", other=(0, -1))
    low_rank_principal: int = option(0, other=2, least=0)
    constrain: bool = option(True, other=False, choices=(True, False))
    reference_grad: bool = option(True, other=False, choices=(True, False))
    stream: str = option("constant", other="carried", choices=("constant", "carried"), later=True)

    def default_input(self) -> EMB:
        return EMB()

    def inject(self, vit: VisionTransformer) -> None:
        options = self.rank, self.low_rank_principal, self.constrain, self.reference_grad, self.stream == "carried"
        for i in choose_layers(self.layers, len(vit.blocks)):
            vit.blocks[i] = UntangledBlock(vit.blocks[i], *options)
