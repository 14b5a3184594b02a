"""What every method and every input is: a frozen dataclass whose fields are its options, registered by its name.

A comparison answers two questions. How do the new bands come in? The *input*, one of ``INPUTS``. How do the blocks
adapt? The *method*, one of ``METHODS``. Any input goes with any method.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Self

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peftlib.backbones.loading import encoder_parameters
from peftlib.sensors.bands import BandSet
from peftlib.sensors.reflectance import Reflectance

METHODS: dict[str, type["Method"]] = {}
INPUTS: dict[str, type["Input"]] = {}
INF = float("inf")
_BRIDGES: dict[str, type["Config"]] = {}  # without a default, so in no table; files know them


def option(default: Any, *, other: Any, choices=(), some=(), least: float = -INF, below=INF, later: bool = False):
    """A field of a config, with what it may hold.

    Args:
        default: without which the config would be another.
        other: another legal value, one that changes the output; tests take it.
        choices: one of which it holds; some: of which it holds one or more, each once.
        least, below: bounds of a number, an int where the default is one.
        later: whether it came when there were results already, whose keys say nothing of it.
    """
    told = {"other": other, "choices": choices, "some": some, "least": least, "below": below, "later": later}
    return field(default=default, metadata=told)


@dataclass(frozen=True)
class Config:
    """A frozen set of options.

    Attributes:
        name: key in ``METHODS`` or ``INPUTS``.
        label: as people write it.
        learning_rates: what a search tries, a factor of 4 apart; none where nothing is tuned.
        tunes: pattern of the names, in the adapted model, of what it tunes with its default options.
        starts_as_pretrained: whether the adapted model equals the pretrained one before training.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    learning_rates: ClassVar[tuple[float, ...]] = ()
    tunes: ClassVar[str] = r"(?!)"  # matches nothing
    starts_as_pretrained: ClassVar[bool] = True

    def __post_init__(self):
        for f in fields(self):
            _check(type(self).__name__, f, getattr(self, f.name))

    def __str__(self) -> str:
        """The config as one would write it: options that are not the defaults."""
        chosen = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(chosen)})"

    def options(self) -> dict:
        """The options as plain values for JSON, later ones unless default; ``from_options`` is its inverse."""
        silent = {f.name for f in fields(self) if f.metadata["later"] and getattr(self, f.name) == f.default}
        return {name: value for name, value in asdict(self).items() if name not in silent}

    @classmethod
    def from_options(cls, options: dict) -> Self:
        """A config from what ``options`` gave, lists being tuples again. ValueError: an option that is not known."""
        known = {f.name for f in fields(cls)}
        if not set(options) <= known:
            raise ValueError(f"{cls.name} does not know options {sorted(set(options) - known)}: {sorted(known)}")
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})


class Input(Config):
    """How the bands come in.

    Attributes:
        gives_auxiliary: whether it makes x_A, the embedding of the bands beyond RGB, which untangled attention needs.
    """

    gives_auxiliary: ClassVar[bool] = False

    def __init_subclass__(cls, **options) -> None:
        super().__init_subclass__(**options)
        INPUTS[cls.name] = cls

    @property
    def reads_any_bands(self) -> bool:
        """Whether no tuned tensor belongs to a certain band, so that the adapter can read another sensor's."""
        return False

    def inject(self, vit: VisionTransformer, bands: BandSet) -> nn.Module | None:
        """Change a frozen ViT in place, leaving trainable what the input tunes. ValueError: bands that it cannot read.

        Returns the module that makes x_A, ``(Reflectance, (B, C, H, W)) -> (B, n, d)``, or None.
        """
        return None

    def patch_pixels(self, reflectance: Reflectance, x: Tensor) -> Tensor:
        """What the patch embedding reads of an image: (B, C, H, W) -> (B, 3, H, W), or more channels behind those."""
        return reflectance.rgb(x)

    def resampling(self, bands: BandSet) -> Tensor | None:
        """(K, C) what turns bands into the K values that are standardised; None for the bands beyond RGB themselves."""
        return None


class Method(Config):
    """How the blocks adapt.

    Attributes:
        needs_auxiliary: whether its blocks read x_A.
    """

    needs_auxiliary: ClassVar[bool] = False

    def __init_subclass__(cls, bridge: bool = False, **options) -> None:
        super().__init_subclass__(**options)
        (_BRIDGES if bridge else METHODS)[cls.name] = cls

    def fixed_state(self, vit: VisionTransformer) -> dict[str, Tensor]:
        """Tensors in the adapted ViT that are not trained and that a file must carry all the same."""
        return {}

    def default_input(self) -> Input:
        """The input that it is used with unless another is named."""
        return INPUTS["rgb"]()

    def inject(self, vit: VisionTransformer) -> None:
        """Change a ViT in place, leaving trainable what the method tunes; all else is frozen already."""
        raise NotImplementedError

    @torch.no_grad()
    def merge(self, vit: VisionTransformer) -> VisionTransformer:
        """Fold what ``inject`` put in into the plain layers, in place, where a module knows how (its ``merged``)."""
        for name, module in list(vit.named_modules()):
            if hasattr(module, "merged"):
                vit.set_submodule(name, module.merged())
        return vit


def method_from(name: str, options: dict) -> Method:
    """A method from its name and ``options()``; ValueError for an unknown name or option."""
    return _named("method", METHODS | _BRIDGES, name).from_options(options)


def input_from(name: str, options: dict) -> Input:
    """An input from its name and ``options()``; ValueError for an unknown name or option."""
    return _named("input", INPUTS, name).from_options(options)


def _named(kind: str, registry: dict, name: str):
    if name not in registry:
        raise ValueError(f"unknown {kind} {name!r}; choose from {', '.join(registry)}")
    return registry[name]


# --- what options may hold ---


def _check(owner: str, f, value: Any) -> None:
    """Raise ValueError unless a field made by ``option`` holds what it may."""
    told = f.metadata
    if told["choices"]:
        if not any(type(value) is type(choice) and value == choice for choice in told["choices"]):
            raise ValueError(f"{owner}({f.name}={value!r}); choose from {told['choices']}")
    elif told["some"]:
        known = isinstance(value, tuple | list) and set(value) <= set(told["some"])
        if not known or not value or len(set(value)) < len(value):
            raise ValueError(f"{owner}({f.name}={value!r}); choose some of {told['some']}")
    elif told["least"] > -INF:
        whole = isinstance(f.default, int) and not isinstance(f.default, bool)
        right_type = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not right_type or not told["least"] <= value < told["below"]:
            kind = "an int" if whole else "a number"
            bound = "" if told["below"] == INF else f" and below {told['below']}"
            raise ValueError(f"{owner}({f.name}={value!r}); it must be {kind} of at least {told['least']}{bound}")


def choose_layers(layers: str | tuple[int, ...], depth: int) -> tuple[int, ...]:
    """``"all"`` or block numbers (negative ones count from the end) -> sorted block numbers.

    ValueError: no block, one that the model does not have, or one named twice.
    """
    numbers = range(depth) if layers == "all" else layers if isinstance(layers, tuple | list) else ()
    chosen = sorted({i % depth for i in numbers if isinstance(i, int) and -depth <= i < depth})
    if not chosen or len(chosen) < len(numbers):
        raise ValueError(f"layers={layers!r}; choose 'all' or block numbers from 0 to {depth - 1}, each once")
    return tuple(chosen)


def unfreeze(vit: VisionTransformer, part: str = "") -> None:
    """Make trainable those parameters of the encoder that have this in their name."""
    for name, parameter in encoder_parameters(vit).items():
        if part in name:
            parameter.requires_grad_(True)


def zeroed(layer: nn.Linear) -> nn.Linear:
    """The layer with weight and bias zero, so that what ends with it starts without effect."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
