"""HFPeft: a thin bridge to the tuners of Hugging Face's ``peft`` (``pip install peftlib[peft]``)."""

import json
from copy import deepcopy
from dataclasses import MISSING, dataclass, fields
from typing import Any, Self

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from peftlib.backbones.loading import BEYOND_TOKENS
from peftlib.files import fingerprint, optional
from peftlib.methods.base import Method

LINEARS = r"blocks\.\d+\.(attn\.(qkv|([qkv]_)?proj)|mlp\.(fc1(_[gx])?|fc2))"
UNFIT = ("ADAPTION_PROMPT", "POLY", "SHADOW", "TRAINABLE_TOKENS")  # they need a language model, or the task of an image
OTHERS = {"IA3": r"blocks\.\d+\.(attn\.(qkv|[qkv]_proj)|mlp\.fc2)", "LN_TUNING": r"(blocks\.\d+\.norm[12]|norm)"}


@dataclass(frozen=True)
class HFPeft(Method, bridge=True):
    """Any tuner of ``peft`` that works on layers: LoRA, DoRA, AdaLoRA, IA3, LN tuning, OFT, VeRA, FourierFT, ...

        pl.HFPeft(peft.LoraConfig(r=8, use_dora=True))

    Whether the adapted model starts as the pretrained one is up to the config (FourierFT's default does not; its
    ``init_weights=True`` does). ``model.vit.hf_tuner`` is peft's tuner, for what a training loop has to call itself:
    AdaLoRA's ``update_and_allocate(step)``. (A model from a file is for use: its pruning cannot resume.)

    Attributes:
        config: a ``PeftConfig``, copied. Without ``target_modules`` it gets ``qkv``, ``proj``, ``fc1`` and ``fc2`` of
            all blocks (LN tuning: norms; IA3: ``qkv`` and ``fc2``). The patch embedding is left out.

    ValueError: not a config of such a tuner, or one that replaces pretrained weights or wants a head.
    """

    name, label = "hf_peft", "HF peft"
    learning_rates = (1.25e-4, 5e-4, 2e-3, 8e-3)
    config: Any  # a PeftConfig: importing peft takes seconds, and it is an optional extra

    def __post_init__(self):
        PeftConfig, tuners = _peft()
        config = deepcopy(self.config)  # the caller may go on changing theirs
        layers = isinstance(config, PeftConfig) and hasattr(config, "target_modules") and config.peft_type in tuners
        if not layers or config.is_prompt_learning or config.peft_type in UNFIT:
            known = "LoraConfig(r=8), AdaLoraConfig, IA3Config, LNTuningConfig, OFTConfig, VeraConfig, FourierFTConfig"
            raise ValueError(f"HFPeft(config={config!r}); give a peft config that adapts layers, such as {known}")
        if getattr(config, "modules_to_save", None) or config.inference_mode:
            raise ValueError("no modules_to_save (train heads in your task), no inference_mode (pl.Frozen() is frozen)")
        object.__setattr__(self, "config", config)
        self.options()  # what cannot be written down is refused now, not after a training

    def __str__(self) -> str:
        chosen = [f"{name}={value!r}" for name, value in self.options()["config"].items() if name != "peft_type"]
        return f"HFPeft({type(self.config).__name__}({', '.join(chosen)}))"

    def __hash__(self) -> int:
        return hash(str(self))

    def inject(self, vit: VisionTransformer) -> None:
        tunes = {name: p.requires_grad for name, p in vit.named_parameters()}
        base, before = list(vit.state_dict()), fingerprint(vit.state_dict())
        config = deepcopy(self.config)  # peft writes into it
        if not config.target_modules and not getattr(config, "target_parameters", None):
            config.target_modules = OTHERS.get(config.peft_type.value, LINEARS)
            if hasattr(config, "feedforward_modules"):  # IA3's
                config.feedforward_modules = r"blocks\.\d+\.mlp\.fc2"
        if getattr(config, "exclude_modules", "") is None:
            config.exclude_modules = r"patch_embed\..*"
        try:
            tuner = _peft()[1][config.peft_type](vit, config, "default")
            if any(name.startswith("patch_embed.") for name in tuner.targeted_module_names):
                raise ValueError("the patch embedding is a target, and it belongs to the input.")
        except (ValueError, TypeError, RuntimeError, AttributeError, StopIteration) as error:  # peft's name neither
            reason = str(error) or "a target is a module without parameters"  # timm has several identities
            raise ValueError(
                f"{self} does not fit this ViT: {reason} Targets are names or a pattern of modules such as qkv, proj, "
                f"fc1 and fc2, by default {LINEARS!r}"
            ) from error
        after = {name.replace(".base_layer.", "."): tensor for name, tensor in vit.state_dict().items()}
        if fingerprint({name: after[name] for name in base}) != before:
            raise ValueError(
                f"this {type(config).__name__} changes pretrained weights at the start (init_lora_weights or such), so "
                "an adapter file alone could not bring the model back; choose an initialisation that leaves them"
            )
        for name, parameter in vit.named_parameters():
            if name.startswith(("patch_embed.", *BEYOND_TOKENS)):  # bias="all" tunes these too
                parameter.requires_grad_(tunes.get(name, False))
        vit.__dict__["hf_tuner"] = tuner  # not a submodule: the tuner holds the ViT

    def merge(self, vit: VisionTransformer) -> VisionTransformer:
        vit = vit.__dict__.pop("hf_tuner").merge_and_unload()
        vit.__dict__.pop("peft_config", None)
        return vit

    def fixed_state(self, vit: VisionTransformer) -> dict[str, Tensor]:
        """Such as VeRA's projections, once, and AdaLoRA's rank numbers."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = tuple(f"{path}." for path, layer in vit.named_modules() if isinstance(layer, BaseTunerLayer))
        own = {name for name in vit.state_dict() if name.startswith(layers) and ".base_layer." not in name}
        tensors = [*vit.named_parameters(), *vit.named_buffers()]  # a shared one comes once
        return {name: tensor.detach() for name, tensor in tensors if name in own and not tensor.requires_grad}

    def options(self) -> dict:
        chosen = {"peft_type": self.config.peft_type.value}
        for field in fields(self.config):
            value, default = getattr(self.config, field.name), field.default
            default = default if field.default_factory is MISSING else field.default_factory()
            if field.init and field.name not in ("peft_type", "peft_version") and value != default:
                chosen[field.name] = sorted(value) if isinstance(value, set) else getattr(value, "value", value)
        try:
            json.dumps(chosen)
        except TypeError as error:
            raise ValueError(f"{type(self.config).__name__} has options that no file can hold: {error}") from None
        return {"config": chosen}

    @classmethod
    def from_options(cls, options: dict) -> Self:
        PeftConfig, tuners = _peft()
        config = options.get("config", {})
        if config.get("peft_type") not in tuners:
            raise ValueError(f"{cls.name} needs a dict config with a peft_type of {sorted(tuners)}; got {options!r}")
        made = PeftConfig.from_peft_type(**config)
        if unknown := {*options, *config} - {"config", *vars(made)}:
            raise ValueError(f"this peft knows no options {sorted(unknown)} of {config['peft_type']}; is it older?")
        return cls(made)


def _peft() -> tuple[Any, dict]:
    """peft's base config, and its tuners by type."""
    mapping = optional("peft.mapping", "peft")
    return optional("peft", "peft").PeftConfig, mapping.PEFT_TYPE_TO_TUNER_MAPPING
