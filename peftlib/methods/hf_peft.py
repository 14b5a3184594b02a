"""HFPeft: a thin bridge to the tuners of Hugging Face's ``peft`` (``pip install peftlib[peft]``)."""

import json
from copy import deepcopy
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from peftlib.methods.base import InputMethod
from peftlib.weights import fingerprint

if TYPE_CHECKING:  # importing peft takes seconds, and it is an optional extra
    from peft import PeftConfig

LINEARS = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
NORMS = r"blocks\.\d+\.norm[12]|norm"
IA3 = {"target_modules": r"blocks\.\d+\.(attn\.qkv|mlp\.fc2)", "feedforward_modules": r"blocks\.\d+\.mlp\.fc2"}
PATCH_EMBED = r"patch_embed\..*"


@dataclass(frozen=True)
class HFPeft(InputMethod):
    """Any tuner of ``peft`` that works on layers: LoRA, DoRA, AdaLoRA, IA3, LN tuning, OFT, VeRA, FourierFT, ...

        pl.HFPeft(peft.LoraConfig(r=8, use_dora=True))

    Queries, keys and values are one fused layer, ``qkv``, in timm. Whether the adapted model starts as the pretrained
    one is up to the config (FourierFT's default does not; its ``init_weights=True`` does). ``model.vit.hf_tuner`` is
    peft's tuner, for what a training loop has to call itself: AdaLoRA's ``update_and_allocate(step)``, without which it
    keeps its first ranks.

    Attributes:
        config: a ``PeftConfig``, copied. Without ``target_modules`` it gets ``qkv``, ``proj``, ``fc1`` and ``fc2`` of
            all blocks (LN tuning: all norms; IA3: ``qkv`` and ``fc2``). The patch embedding is never a target.
        new_bands, train_patch_embed: see ``InputMethod``.

    Raises:
        ImportError: ``peft`` is not installed.
        ValueError: not a config of such a tuner, or one that replaces pretrained weights or wants a head.
    """

    name: ClassVar[str] = "hf_peft"
    config: "PeftConfig"

    def __post_init__(self):
        super().__post_init__()
        PeftConfig, tuners = _peft()
        config = deepcopy(self.config)  # peft writes into it
        known = isinstance(config, PeftConfig) and config.peft_type in tuners
        if not known or not hasattr(config, "target_modules"):
            raise ValueError(
                f"HFPeft(config={config!r}); give a peft config that adapts layers, such as LoraConfig(r=8), "
                "AdaLoraConfig, IA3Config, LNTuningConfig, OFTConfig, VeraConfig or FourierFTConfig"
            )
        if getattr(config, "modules_to_save", None):
            raise ValueError(f"modules_to_save={config.modules_to_save!r}: heads belong to your task, train them there")
        if not config.target_modules:
            _default_targets(config)
        if getattr(config, "exclude_modules", "") is None:
            config.exclude_modules = PATCH_EMBED
        object.__setattr__(self, "config", config)
        self.options()  # what can't be written down is refused now, not after a training

    def __str__(self) -> str:
        options = self.options()["config"]
        own = (LINEARS, NORMS, PATCH_EMBED, *IA3.values())  # our defaults would hide what the user chose
        chosen = [f"{k}={v!r}" for k, v in options.items() if k != "peft_type" and v not in own]
        return f"HFPeft({type(self.config).__name__}({', '.join(chosen)}))"

    def __hash__(self) -> int:
        return hash(json.dumps(self.options(), sort_keys=True))

    def inject_blocks(self, vit: VisionTransformer) -> None:
        _, tuners = _peft()
        base = list(vit.state_dict())
        before = fingerprint(vit.state_dict())
        config = deepcopy(self.config)
        try:
            tuner = tuners[config.peft_type](vit, config, "default")
        except StopIteration:
            raise ValueError(
                f"target_modules={config.target_modules!r} meet a module without parameters (timm has several "
                f"identities); name whole paths, such as {NORMS!r}"
            ) from None
        if any("patch_embed" in name for name in tuner.targeted_module_names):
            raise ValueError("the patch embedding is no target of a tuner; see new_bands and train_patch_embed")
        after = {name.replace(".base_layer.", "."): tensor for name, tensor in vit.state_dict().items()}
        if fingerprint({name: after[name] for name in base}) != before:
            raise ValueError(
                f"this {type(config).__name__} changes pretrained weights at the start (init_lora_weights or such), so "
                "an adapter file alone could not bring the model back; choose an initialisation that leaves them"
            )
        vit.patch_embed.requires_grad_(self.train_patch_embed)  # peft froze it
        vit.__dict__["hf_tuner"] = tuner  # not a submodule: the tuner holds the ViT

    def merge(self, vit: VisionTransformer) -> VisionTransformer:
        tuner = vit.__dict__.pop("hf_tuner")
        vit = tuner.merge_and_unload()
        vit.__dict__.pop("peft_config", None)
        return vit

    def fixed_state(self, vit: VisionTransformer) -> dict[str, Tensor]:
        """Such as VeRA's projections, once, and AdaLoRA's rank numbers."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = tuple(f"{path}." for path, layer in vit.named_modules() if isinstance(layer, BaseTunerLayer))
        kept = vit.state_dict().keys()
        tensors = [*vit.named_parameters(), *vit.named_buffers()]  # a shared one comes once
        return {
            name: tensor.detach()
            for name, tensor in tensors
            if name in kept and name.startswith(layers) and ".base_layer." not in name and not tensor.requires_grad
        }

    def options(self) -> dict:
        chosen = {"peft_type": self.config.peft_type.value}
        for field in fields(self.config):
            value = getattr(self.config, field.name)
            if field.init and field.name not in ("peft_type", "peft_version") and value != _default(field):
                chosen[field.name] = _plain(value)
        try:
            json.dumps(chosen)
        except TypeError as error:
            raise ValueError(f"{type(self.config).__name__} has options that no file can hold: {error}") from None
        return {"new_bands": self.new_bands, "train_patch_embed": self.train_patch_embed, "config": chosen}

    @classmethod
    def from_options(cls, options: dict) -> Self:
        PeftConfig, tuners = _peft()
        config = dict(options["config"])
        if config.get("peft_type") not in tuners:
            raise ValueError(f"peft has no tuner {config.get('peft_type')!r}; choose from {', '.join(sorted(tuners))}")
        return cls(**options | {"config": PeftConfig.from_peft_type(**config)})


def _peft() -> tuple[type, dict]:
    """peft's base config, and its tuners by type."""
    try:
        from peft import PeftConfig
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    except ImportError as error:
        raise ImportError(f"HFPeft needs the optional extra: pip install 'peftlib[peft]' ({error})") from error
    return PeftConfig, PEFT_TYPE_TO_TUNER_MAPPING


def _default_targets(config: "PeftConfig") -> None:
    kind = config.peft_type.value
    if kind == "IA3":
        for name, value in IA3.items():
            setattr(config, name, value)
    else:
        config.target_modules = NORMS if kind == "LN_TUNING" else LINEARS


def _default(field) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _plain(value: Any) -> Any:
    """Sets become sorted lists, enums their value."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return getattr(value, "value", value)
