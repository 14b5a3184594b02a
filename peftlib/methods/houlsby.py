"""Houlsby adapters: a bottleneck with a residual after the attention and after the MLP (Houlsby et al., ICML 2019)."""

from dataclasses import dataclass

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peftlib.methods.base import Method, choose_layers, option, zeroed

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "tanh": nn.Tanh}
POSITIONS = {"attention": "ls1", "mlp": "ls2"}  # the layer scale is the last thing in a branch, or an identity


class Bottleneck(nn.Module):
    """y = x + up(activation(down(x))), with up zero at the start. x: (B, N, d) -> (B, N, d)."""

    def __init__(self, dim: int, width: int, activation: str):
        super().__init__()
        self.down, self.act, self.up = nn.Linear(dim, width), ACTIVATIONS[activation](), zeroed(nn.Linear(width, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.act(self.down(x)))


@dataclass(frozen=True)
class Houlsby(Method):
    """Bottleneck adapters at the end of each branch, before it is added to the stream.

    Attributes:
        width: of the bottleneck.
        activation: ``gelu``, ``relu`` or ``tanh``.
        positions: where: some of ``attention``, ``mlp``.
        layers: ``"all"`` or block numbers.
    """

    name, label = "houlsby", "Houlsby adapters"
    learning_rates = (1.25e-4, 5e-4, 2e-3, 8e-3)
    tunes = r"vit\.blocks\.\d+\.(ls|drop_path)[12]\.1\.(down|up)\.(weight|bias)"

    width: int = option(64, other=8, least=1)
    activation: str = option("gelu", other="relu", choices=tuple(ACTIVATIONS))
    positions: tuple[str, ...] = option(("attention", "mlp"), other=("mlp",), some=tuple(POSITIONS))
    layers: str | tuple[int, ...] = option("all", other=(0, -1))

    def inject(self, vit: VisionTransformer) -> None:
        weight = vit.patch_embed.proj.weight
        for i in choose_layers(self.layers, len(vit.blocks)):
            for position in self.positions:
                last = POSITIONS[position]
                if not hasattr(vit.blocks[i], last):  # timm's Eva scales by no module
                    last = last.replace("ls", "drop_path")
                adapter = Bottleneck(vit.embed_dim, self.width, self.activation).to(weight)
                setattr(vit.blocks[i], last, nn.Sequential(getattr(vit.blocks[i], last), adapter))
