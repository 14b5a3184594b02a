"""DEFLECT: EMB, uAtt and deflection (Thoreau, Marsocci, Derksen, ICCV 2025), as this project defines them."""

from dataclasses import dataclass, field
from typing import ClassVar

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peftlib.deflect.attention import UntangledBlock
from peftlib.deflect.patch_embedding import PixelSetEncoder
from peftlib.methods.base import LATER, Method, at_least, choose, choose_layers
from peftlib.sensors.bands import BandSet
from peftlib.sensors.spectral_indices import available_indices
from peftlib.sensors.wavelengths import KNOTS, resampling

BANDS, WAVELENGTHS = "bands", "wavelengths"


@dataclass(frozen=True)
class Deflect(Method):
    """Untangled patch embedding, untangled attention, norm constraint. RGB goes through the frozen patch embedding.

    Ablations: ``layers=()`` is EMB alone, ``constrain=False`` is EMB + uAtt.

    Attributes:
        rank: r of the auxiliary matrices U V, 4 r d parameters a block. 6 puts ViT-L at the published 0.2%.
        layers: which blocks get untangled attention: ``"all"`` or block numbers.
        low_rank_principal: rank of an additional update of W_Q, W_K, W_V for the RGB part; 0 is none.
        constrain: whether a block may only turn a displacement, not lengthen it.
        reference_grad: whether the gradient runs through the length of the reference displacement.
        width: hidden width of the pixel-set encoder.
        cells: cells x cells pixel sets a patch; 1 is the pure set of the paper.
        indices: ``"auto"`` (those of NDVI, NDWI, MNDWI, NBR, NDMI, BI that the bands allow) or names of spyndex, of
            indices that lie in [-1, 1]. ``peftlib.model.transfer`` refuses a sensor that lacks the bands of one; with
            ``indices=()`` the adapter reads any sensor.
        spectral: what the encoder's first layer reads: ``"bands"``, those beyond RGB, by position; or
            ``"wavelengths"``, the whole spectrum on a fixed grid (``peftlib.sensors.wavelengths``), so that one adapter serves
            sensors with different bands (``peftlib.model.transfer``). Bands that water vapour hides are then left out.
        series: how the encoder reads the dates of a time series (``peftlib.deflect.time_series``): ``"set"``, whose order means
            nothing and in which dates without data are left out, or ``"sequence"``, all dates of a pixel at once.
    """

    name: ClassVar[str] = "deflect"
    rank: int = 6
    layers: str | tuple[int, ...] = "all"
    low_rank_principal: int = 0
    constrain: bool = True
    reference_grad: bool = True
    width: int = 32
    cells: int = 1
    indices: str | tuple[str, ...] = "auto"
    spectral: str = field(default=BANDS, metadata=LATER)
    series: str = field(default="set", metadata=LATER)

    def __post_init__(self):
        for name, least in (("rank", 1), ("low_rank_principal", 0), ("width", 1), ("cells", 1)):
            at_least(self, name, least)
        choose(self, "constrain", (True, False))
        choose(self, "reference_grad", (True, False))
        choose(self, "spectral", (BANDS, WAVELENGTHS))
        choose(self, "series", ("set", "sequence"))
        if isinstance(self.indices, str) and self.indices != "auto":
            raise ValueError(f"Deflect(indices={self.indices!r}); choose 'auto' or a tuple of spyndex names")

    @property
    def reads_any_bands(self) -> bool:
        return self.spectral == WAVELENGTHS

    def resampling(self, bands: BandSet) -> Tensor | None:
        return resampling(bands) if self.spectral == WAVELENGTHS else None

    def inject(self, vit: VisionTransformer, bands: BandSet) -> nn.Module:
        if not isinstance(vit.norm_pre, nn.Identity | nn.LayerNorm):
            raise ValueError(f"DEFLECT splits a LayerNorm, and norm_pre is {type(vit.norm_pre).__name__}")
        if bands.dates and self.spectral == WAVELENGTHS:
            raise ValueError("spectral='wavelengths' reads one date; a time series takes spectral='bands'")
        vit.requires_grad_(False)
        weight = vit.patch_embed.proj.weight
        indices = available_indices(bands.of_one_date) if self.indices == "auto" else tuple(self.indices)
        knots = len(KNOTS) if self.spectral == WAVELENGTHS else 0
        encoder = PixelSetEncoder(
            bands, indices, vit.embed_dim, vit.patch_embed.patch_size, self.width, self.cells, knots, self.series
        )
        for i in choose_layers(self.layers, len(vit.blocks)):
            vit.blocks[i] = UntangledBlock(
                vit.blocks[i], self.rank, self.low_rank_principal, self.constrain, self.reference_grad
            )
        return encoder.to(weight)
