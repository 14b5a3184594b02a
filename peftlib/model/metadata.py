"""Metadata of an image as an embedding that is added to its patch tokens."""

from collections.abc import Sequence

from torch import Tensor, nn

from peftlib.methods.base import zeroed
from peftlib.sensors.metadata import SIZES


class MetadataEmbedding(nn.Module):
    """One small MLP for each kind of metadata; their sum is added to every patch token.

    The last layers start at zero, so the adapted model starts as it would without. What is not known adds nothing.

    ``names``: some of ``SIZES``; ``dim``: width d of the tokens; ``width``: hidden one of each MLP.
    """

    def __init__(self, names: Sequence[str], dim: int, width: int = 32):
        super().__init__()
        if not set(names) <= set(SIZES) or len(set(names)) < len(names):
            raise ValueError(f"metadata={tuple(names)}; choose from {', '.join(SIZES)}, each once")
        self.names = tuple(names)
        self.parts = nn.ModuleDict(
            {n: nn.Sequential(nn.Linear(SIZES[n], width), nn.GELU(), zeroed(nn.Linear(width, dim))) for n in names}
        )

    def forward(self, encoded: Tensor) -> Tensor:
        """encoded: (B, K) of ``encode_metadata`` -> (B, 1, d)."""
        total = encoded.new_zeros(())
        for part, numbers in zip(
            self.parts.values(), encoded.split([SIZES[name] for name in self.names], dim=1), strict=True
        ):
            known = numbers.isfinite().all(dim=1, keepdim=True)
            total = total + part(numbers.nan_to_num(0.0, 0.0, 0.0).to(part[0].weight.dtype)) * known
        return total[:, None]
