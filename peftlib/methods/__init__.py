"""The registry of adaptation methods: one file, one line here, and it is tested by being here.

``HFPeft`` is not in it: it is a bridge to many methods, and has no default.
"""

from peftlib.deflect.method import Deflect
from peftlib.methods.base import Method
from peftlib.methods.bitfit import BitFit
from peftlib.methods.earth_adapter import EarthAdapter
from peftlib.methods.frozen import Frozen, Full
from peftlib.methods.hf_peft import HFPeft
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


def method_from(name: str, options: dict) -> Method:
    """A config from its name and ``options()``, as an adapter file or a result row has them.

    Raises:
        ValueError: an unknown name or option.
    """
    configs = METHODS | {HFPeft.name: HFPeft}
    if name not in configs:
        raise ValueError(f"unknown method {name!r}; choose from {', '.join(configs)}")
    return configs[name].from_options(options)
