"""peftlib: adapt RGB-pretrained vision transformers to multispectral satellite images.

import peftlib as pl
vit = pl.load_backbone("dinov2_small")
model = pl.adapt(vit, pl.Deflect(), bands=("B02", "B03", "B04", "B08"), sensor="sentinel2", image_size=126)
"""

from peftlib.backbones.loading import BACKBONES, BackboneSpec, load_backbone
from peftlib.deflect import EMB, Deflect
from peftlib.methods import INPUTS, METHODS, RGB, BitFit, Frozen, Full, Inflated, NormTuning
from peftlib.methods.apla import APLA
from peftlib.methods.earth_adapter import EarthAdapter
from peftlib.methods.hf_peft import HFPeft
from peftlib.methods.houlsby import Houlsby
from peftlib.methods.lora import LoRA
from peftlib.methods.slr import SLR
from peftlib.methods.vpt import VPT
from peftlib.model.adapted_vit import AdaptedViT, adapt, count_parameters
from peftlib.model.adapter_file import load_adapter, save_adapter
from peftlib.model.costs import cost_table
from peftlib.model.merge import merge
from peftlib.model.transfer import transfer
from peftlib.sensors.bands import SENSORS

__version__ = "0.2.0"
__all__ = [
    "APLA", "BACKBONES", "EMB", "INPUTS", "METHODS", "RGB", "SENSORS", "SLR", "VPT", "AdaptedViT", "BackboneSpec",
    "BitFit", "Deflect", "EarthAdapter", "Frozen", "Full", "HFPeft", "Houlsby", "Inflated", "LoRA", "NormTuning",
    "adapt", "cost_table", "count_parameters", "load_adapter", "load_backbone", "merge", "save_adapter", "transfer",
]  # fmt: skip
