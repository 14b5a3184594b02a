"""Where, when and how fine: metadata of an image as an embedding that is added to its patch tokens."""

import math
from collections.abc import Mapping, Sequence
from datetime import date

import torch
from torch import Tensor, nn

from peftlib.deflect.time_series import YEAR
from peftlib.methods.base import zeroed

SIZES = {"location": 3, "date": 2, "gsd": 1}  # numbers that describe each


def encode_metadata(metas: Sequence[Mapping], names: Sequence[str]) -> Tensor:
    """Metadata of images as numbers, NaN where one is not known.

    Location is a point on the unit sphere, so that 180° west and east are one place. The date is a point on the circle
    of the year. The ground sampling distance is log10 of tens of metres.

    Args:
        metas: ``meta`` of samples: ``location`` (latitude, longitude) in degrees, ``date`` YYYY-MM-DD, ``gsd`` in m.
        names: some of ``SIZES``.

    Returns:
        (B, K), in the order of ``names``.
    """
    rows = [[number for name in names for number in _numbers(name, meta.get(name))] for meta in metas]
    return torch.tensor(rows, dtype=torch.float32).reshape(len(metas), sum(SIZES[name] for name in names))


def _numbers(name: str, value) -> tuple[float, ...]:
    if value is None:
        return (math.nan,) * SIZES[name]
    if name == "location":
        latitude, longitude = (math.radians(degrees) for degrees in value)
        across = math.cos(latitude)
        return across * math.cos(longitude), across * math.sin(longitude), math.sin(latitude)
    if name == "date":
        angle = 2 * math.pi * date.fromisoformat(value).timetuple().tm_yday / YEAR
        return math.cos(angle), math.sin(angle)
    return (math.log10(value / 10),)


class MetadataEmbedding(nn.Module):
    """One small MLP for each kind of metadata; their sum is added to every patch token.

    The last layers start at zero, so the adapted model starts as it would without. What is not known adds nothing.

    Args:
        names: some of ``SIZES``.
        dim: width d of the tokens.
        width: hidden width of each MLP.
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
        sizes = [SIZES[name] for name in self.names]
        if encoded.ndim != 2 or encoded.shape[1] != sum(sizes):
            raise ValueError(
                f"metadata {self.names} takes (B, {sum(sizes)}) numbers of peftlib.model.metadata.encode_metadata, "
                f"got {tuple(encoded.shape)}"
            )
        total = encoded.new_zeros(())
        for part, numbers in zip(self.parts.values(), encoded.split(sizes, dim=1), strict=True):
            known = numbers.isfinite().all(dim=1, keepdim=True)
            total = total + part(numbers.nan_to_num(0.0, 0.0, 0.0).to(part[0].weight.dtype)) * known
        return total[:, None]
