"""peftlib inside other frameworks. Nothing here is imported by ``import peftlib``."""

from peftlib.integrations.blocks import BLOCK_METHODS, adapt_blocks
from peftlib.integrations.features import LayerFeatures

__all__ = ["BLOCK_METHODS", "LayerFeatures", "adapt_blocks"]
