"""peftlib inside other frameworks. Nothing here is imported by ``import peftlib``."""

from peftlib.integrations.features import LayerFeatures

__all__ = ["LayerFeatures"]
