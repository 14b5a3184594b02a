"""APLA: the projection behind each attention, whole or in part (Sorkhei et al., arXiv 2503.11335)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peftlib.methods.base import Method, option


class PartlyTunedLinear(nn.Module):
    """y = W x + b, frozen but for those outputs whose numbers are in ``rows`` (r,): their rows of W and entries of b.

    The paper writes x W and says columns. x: (..., d_in) -> (..., d_out).
    """

    def __init__(self, linear: nn.Linear, rows: Tensor):
        super().__init__()
        self.linear = linear
        self.register_buffer("rows", rows)
        self.weight = nn.Parameter(linear.weight.detach()[rows])
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach()[rows])

    def forward(self, x: Tensor) -> Tensor:
        y, W = self.linear(x), self.linear.weight  # plus what was learnt: nothing at the start, to the bit
        change = self.weight - W[self.rows], None if self.bias is None else self.bias - self.linear.bias[self.rows]
        return y.index_add(-1, self.rows, F.linear(x.to(self.weight.dtype), *change).to(y.dtype))

    def merged(self) -> nn.Linear:
        for whole, trained in zip(self.linear.parameters(), self.parameters(recurse=False), strict=True):
            whole[self.rows] = trained
        return self.linear


@dataclass(frozen=True)
class APLA(Method):
    """The projection behind each attention: its weight and its bias, as in the authors' code.

    Attributes:
        share: of its outputs, above 0 and at most 1; 1 is all. Which ones is drawn for each block, as torch is seeded.
    """

    name, label = "apla", "APLA"
    learning_rates = (2.5e-5, 1e-4, 4e-4, 1.6e-3)  # the authors' configs have 3e-5 and 1e-4
    tunes = r"vit\.blocks\.\d+\.attn\.proj\.(weight|bias)"

    share: float = option(1.0, other=0.25, least=0.0)

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"APLA(share={self.share!r}); it must be above 0 and at most 1")

    def inject(self, vit: VisionTransformer) -> None:
        from peftlib.methods.lora import target_layers  # here: imported above, it would register before this one

        for attn, _ in target_layers(vit, "all", ("proj",)):
            weight = attn.proj.weight
            rows = torch.randperm(len(weight))[: max(1, round(self.share * len(weight)))]
            if len(rows) == len(weight):
                attn.proj.requires_grad_(True)
            else:
                attn.proj = PartlyTunedLinear(attn.proj, rows.sort().values.to(weight.device))

    def fixed_state(self, vit: VisionTransformer) -> dict[str, Tensor]:
        """Which rows were drawn."""
        return {name: tensor for name, tensor in vit.named_buffers() if name.endswith("attn.proj.rows")}
