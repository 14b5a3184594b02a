"""Methods that add nothing: they tune none, all, or some of the backbone's own parameters."""

from dataclasses import dataclass

from timm.models.vision_transformer import VisionTransformer

from peftlib.methods.base import Method, unfreeze


@dataclass(frozen=True)
class Frozen(Method):
    """The pretrained blocks as they are. With ``input=pl.EMB()`` it is EMB alone, with ``pl.Inflated()`` the patch
    embedding alone."""

    name, label = "frozen", "frozen"

    def inject(self, vit: VisionTransformer) -> None:
        pass


@dataclass(frozen=True)
class NormTuning(Method):
    """Scale and shift of every normalisation layer that tokens pass (Zhao et al., 2023)."""

    name, label = "norm_tuning", "norm tuning"
    learning_rates = (2.5e-4, 1e-3, 4e-3, 1.6e-2)
    tunes = r"vit\.(.*\.)?([qk]_)?norm(_pre|[12])?\.(weight|bias)"

    def inject(self, vit: VisionTransformer) -> None:
        unfreeze(vit, "norm")


@dataclass(frozen=True)
class BitFit(Method):
    """Every bias that tokens pass: of linear layers, norms and the patch embedding (Ben Zaken et al., 2021)."""

    name, label = "bitfit", "BitFit"
    learning_rates = (2.5e-4, 1e-3, 4e-3, 1.6e-2)
    tunes = r"vit\..*bias"

    def inject(self, vit: VisionTransformer) -> None:
        unfreeze(vit, "bias")


@dataclass(frozen=True)
class Full(Method):
    """Full fine-tuning: every parameter of the backbone, the patch embedding included."""

    name, label = "full", "full fine-tuning"
    learning_rates = (1e-5, 4e-5, 1.6e-4, 6.4e-4)
    tunes = r"vit\..*"

    def inject(self, vit: VisionTransformer) -> None:
        unfreeze(vit)
