"""What every adaptation method shares: a frozen config, the input treatment, and which parameters stay trainable.

A method is a frozen dataclass. Its fields are its options, its ``inject`` changes a copy of the backbone.
"""

from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import ClassVar, Self

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peftlib.backbones.loading import encoder_parameters, spec_of
from peftlib.deflect.patch_embedding import INFLATIONS, inflate_patch_embed
from peftlib.sensors.bands import BandSet

IGNORE = "ignore"
# Metadata of fields that came after rows had been committed: at their default they are no part of a run's facts, and
# so of its key.
LATER = {"later": True}


def facts_of(config) -> dict:
    """The fields of a dataclass, without those that came later and have their default."""

    def at_default(field) -> bool:
        default = field.default_factory() if field.default is MISSING else field.default
        return getattr(config, field.name) == default

    return {f.name: getattr(config, f.name) for f in fields(config) if not (f.metadata == LATER and at_default(f))}


@dataclass(frozen=True)
class Method:
    """Base of all methods.

    Attributes:
        name: key in ``peftlib.METHODS``.
        starts_as_pretrained: whether the adapted model equals the pretrained one before training (new bands at zero).
    """

    name: ClassVar[str]
    starts_as_pretrained: ClassVar[bool] = True

    def __str__(self) -> str:
        """The config as one would write it: options that are not the defaults."""
        chosen = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(chosen)})"

    def inject(self, vit: VisionTransformer, bands: BandSet) -> nn.Module | None:
        """Change a frozen ViT in place, leaving trainable exactly what the method tunes.

        Returns:
            the module that makes x_A from ``Channels``, or None for methods that have no auxiliary tokens.
        """
        raise NotImplementedError

    def tuned_input(self, vit: VisionTransformer, auxiliary: nn.Module | None) -> int:
        """How many of the tuned parameters belong to the reading of bands (patch embedding or pixel-set encoder)."""
        modules = [vit.patch_embed] + ([auxiliary] if auxiliary is not None else [])
        return sum(p.numel() for m in modules for p in m.parameters() if p.requires_grad)

    @property
    def inflated(self) -> bool:
        """Whether the patch embedding reads all bands (else RGB alone)."""
        return False

    @property
    def reads_any_bands(self) -> bool:
        """Whether no tuned tensor belongs to a certain band, so that the adapter can read another sensor's."""
        return False

    def resampling(self, bands: BandSet) -> Tensor | None:
        """(K, C) what turns bands into the K values that are standardised; None for the bands beyond RGB themselves."""
        return None

    def merge(self, vit: VisionTransformer) -> VisionTransformer:
        """Fold what ``inject`` put in into plain layers, in place, where a layer knows how (its ``merged``)."""
        for name, module in list(vit.named_modules()):
            if hasattr(module, "merged"):
                vit.set_submodule(name, module.merged())
        return vit

    def fixed_state(self, vit: VisionTransformer) -> dict[str, Tensor]:
        """Tensors of the method that are not trained and that a file must carry all the same."""
        return {}

    def options(self) -> dict:
        """The config as plain values for JSON; ``from_options`` is its inverse."""
        kept = facts_of(self)
        return {name: value for name, value in asdict(self).items() if name in kept}

    @classmethod
    def from_options(cls, options: dict) -> Self:
        """A config from what ``options`` gave, lists being tuples again.

        Raises:
            ValueError: an option that the method does not know.
        """
        known = {field.name for field in fields(cls)}
        if not set(options) <= known:
            raise ValueError(f"{cls.name} does not know options {sorted(set(options) - known)}: {sorted(known)}")
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})


@dataclass(frozen=True, kw_only=True)
class InputMethod(Method):
    """A method that reads bands beyond RGB, if at all, through an inflated patch embedding.

    Attributes:
        new_bands: ``"ignore"`` (RGB only), or how the kernels of the new bands start: ``"zero"`` (and are trained),
            ``"repeat"``, ``"mean"``, ``"random"``, ``"nearest"`` (see ``peftlib.deflect.patch_embedding.inflate_patch_embed``).
        train_patch_embed: whether the patch embedding is trained too.
    """

    new_bands: str = IGNORE
    train_patch_embed: bool = False
    # Methods that inflate by default take an image of RGB alone too: there is just nothing to inflate.
    inflates_rgb_alone: ClassVar[bool] = False

    def __post_init__(self):
        choose(self, "new_bands", (IGNORE, *INFLATIONS))
        choose(self, "train_patch_embed", (True, False))
        if self.new_bands == "zero" and not self.train_patch_embed:
            raise ValueError(
                f"{type(self).__name__}(new_bands='zero', train_patch_embed=False) would never see the new bands: "
                f"train the patch embedding, or choose new_bands from {(IGNORE, *INFLATIONS[1:])}"
            )

    @property
    def inflated(self) -> bool:
        return self.new_bands != IGNORE

    @property
    def reads_any_bands(self) -> bool:
        return not self.inflated

    def inject(self, vit: VisionTransformer, bands: BandSet) -> None:
        if self.inflated and bands.beyond_rgb:
            inflate_patch_embed(vit.patch_embed, bands, self.new_bands, spec_of(vit).rgb_order)
        elif self.inflated and not self.inflates_rgb_alone:
            raise ValueError(f"new_bands={self.new_bands!r}, but bands {bands.names} have none beyond RGB")
        vit.requires_grad_(False)
        vit.patch_embed.requires_grad_(self.train_patch_embed)
        self.inject_blocks(vit)

    def inject_blocks(self, vit: VisionTransformer) -> None:
        """Add or unfreeze what the method tunes in the blocks."""


def changed(method: Method, **options) -> Method:
    """The same method with other options."""
    return replace(method, **options)


def choose(config: Method, field: str, choices: tuple) -> None:
    """Raise ValueError unless a field holds one of the choices."""
    value = getattr(config, field)
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(f"{type(config).__name__}({field}={value!r}); choose from {choices}")


def choose_some(config: Method, field: str, choices: tuple) -> None:
    """Raise ValueError unless a field holds one or more of the choices, each once."""
    value = getattr(config, field)
    known = isinstance(value, tuple | list) and set(value) <= set(choices)
    if not known or not value or len(set(value)) < len(value):
        raise ValueError(f"{type(config).__name__}({field}={value!r}); choose some of {choices}")


def unfreeze(vit: VisionTransformer, chosen: Callable[[str], bool]) -> None:
    """Make trainable those parameters of the encoder whose name is chosen."""
    for name, parameter in encoder_parameters(vit).items():
        if chosen(name):
            parameter.requires_grad_(True)


def at_least(config: Method, field: str, least: float, below: float = float("inf")) -> None:
    """Raise ValueError unless a field holds a number from ``least`` to ``below`` (an int if its default is one)."""
    value = getattr(config, field)
    default = next(f.default for f in fields(config) if f.name == field)
    whole = isinstance(default, int) and not isinstance(default, bool)
    right_type = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not right_type or not least <= value < below:
        kind, bound = "an int" if whole else "a number", "" if below == float("inf") else f" and below {below}"
        raise ValueError(f"{type(config).__name__}({field}={value!r}); it must be {kind} of at least {least}{bound}")


def choose_layers(layers: str | tuple[int, ...], depth: int) -> tuple[int, ...]:
    """``"all"`` or block numbers (negative ones count from the end) -> sorted block numbers.

    Raises:
        ValueError: a block that the model does not have, or one named twice.
    """
    if layers == "all":
        return tuple(range(depth))
    numbers = layers if isinstance(layers, tuple | list) else None
    if numbers is None or not all(isinstance(i, int) and -depth <= i < depth for i in numbers):
        raise ValueError(f"layers={layers!r}; choose 'all' or block numbers from 0 to {depth - 1}")
    chosen = sorted(i % depth for i in numbers)
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"layers={layers!r} name a block twice")
    return tuple(chosen)


def linear_from(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A plain layer of given weight (d_out, d_in) and bias (d_out,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer
