"""The registry of adaptation methods: one file, one line here, and it is tested by being here."""

from peftlib.methods.base import Method
from peftlib.methods.bitfit import BitFit
from peftlib.methods.deflect import Deflect
from peftlib.methods.earth_adapter import EarthAdapter
from peftlib.methods.frozen import Frozen, Full
from peftlib.methods.houlsby import Houlsby
from peftlib.methods.lora import LoRA
from peftlib.methods.norm_tuning import NormTuning
from peftlib.methods.patch_embed import PatchEmbedding
from peftlib.methods.slr import SLR
from peftlib.methods.vpt import VPT

METHODS: dict[str, type[Method]] = {
    config.name: config
    for config in (
        Frozen, Full, PatchEmbedding, NormTuning, BitFit, LoRA, SLR, Houlsby, VPT, EarthAdapter, Deflect,
    )
}  # fmt: skip
