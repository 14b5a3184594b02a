"""Houlsby adapters: a bottleneck with a residual after the attention and after the MLP (Houlsby et al., 2019)."""

from dataclasses import dataclass
from typing import ClassVar

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peftlib.methods.base import InputMethod, at_least, choose, choose_layers, choose_some

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "tanh": nn.Tanh}
POSITIONS = {"attention": "ls1", "mlp": "ls2"}  # the layer scale is the last thing in a branch, or an identity


class Bottleneck(nn.Module):
    """y = x + up(activation(down(x))), with up zero at the start. x: (B, N, d) -> (B, N, d)."""

    def __init__(self, dim: int, width: int, activation: str):
        super().__init__()
        self.down, self.act, self.up = nn.Linear(dim, width), ACTIVATIONS[activation](), nn.Linear(width, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.act(self.down(x)))


@dataclass(frozen=True)
class Houlsby(InputMethod):
    """Bottleneck adapters at the end of each branch, before it is added to the stream.

    Attributes:
        width: of the bottleneck.
        activation: ``gelu``, ``relu`` or ``tanh``.
        positions: where: some of ``attention``, ``mlp``.
        layers: ``"all"`` or block numbers.
        new_bands, train_patch_embed: see ``InputMethod``.
    """

    name: ClassVar[str] = "houlsby"
    width: int = 64
    activation: str = "gelu"
    positions: tuple[str, ...] = ("attention", "mlp")
    layers: str | tuple[int, ...] = "all"

    def __post_init__(self):
        super().__post_init__()
        at_least(self, "width", 1)
        choose(self, "activation", tuple(ACTIVATIONS))
        choose_some(self, "positions", tuple(POSITIONS))

    def inject_blocks(self, vit: VisionTransformer) -> None:
        weight = vit.patch_embed.proj.weight
        for i in choose_layers(self.layers, len(vit.blocks)):
            for position in self.positions:
                scale = POSITIONS[position]
                adapter = Bottleneck(vit.embed_dim, self.width, self.activation).to(weight)
                setattr(vit.blocks[i], scale, nn.Sequential(getattr(vit.blocks[i], scale), adapter))
