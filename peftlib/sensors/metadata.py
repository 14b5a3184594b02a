"""Where, when and how fine: metadata of images as numbers."""

import math
from collections.abc import Mapping, Sequence
from datetime import date

import torch
from torch import Tensor

YEAR = 365.25  # days
SIZES = {"location": 3, "date": 2, "gsd": 1}  # numbers that describe each


def encode_metadata(metas: Sequence[Mapping], names: Sequence[str]) -> Tensor:
    """Metadata of images as numbers, NaN where one is not known.

    Location is a point on the unit sphere, so that 180° west and east are one place. The date is a point on the circle
    of the year. The ground sampling distance is log10 of tens of metres.

    ``metas``: ``meta`` of samples: ``location`` (latitude, longitude) in degrees, ``date`` YYYY-MM-DD, ``gsd`` in m;
    ``names``: some of ``SIZES`` -> (B, K), in that order.
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
