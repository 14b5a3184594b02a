"""Earth-Adapter: a mixture of frequency adapters after each block (Hu et al., 2025)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peftlib.methods.base import Method, choose_layers, option, zeroed


def split_frequencies(x: Tensor, grid: tuple[int, int], cutoff: float) -> tuple[Tensor, Tensor]:
    """Low- and high-pass of patch tokens over their grid: a square in the 2-D Fourier plane, centred on frequency zero.

    x: (B, n, d), grid: (down, across), cutoff: half side of the square as a share of the Nyquist frequency
    -> low, high, each (B, n, d), that sum to x.
    """
    maps = x.unflatten(1, grid).float()
    spectrum = torch.fft.fft2(maps, dim=(1, 2), norm="ortho")
    down, across = (torch.fft.fftfreq(n, device=x.device).abs() * 2 for n in grid)
    inside = (down[:, None] <= cutoff) & (across[None, :] <= cutoff)
    low = torch.fft.ifft2(spectrum * inside[None, :, :, None], dim=(1, 2), norm="ortho").real
    low = low.flatten(1, 2).to(x.dtype)
    return low, x - low


class FrequencyAdaptedBlock(nn.Module):
    """A frozen block, then patch tokens x + s Delta.

    Delta is an MLP of x, or, with a Fourier branch, the sum of three MLPs of x, of its low-pass and of its high-pass,
    weighted by a softmax router that reads x at unit scale (ours: on raw tokens, whose size grows from block to block,
    the softmax saturates and leaves experts without gradient).

    ``vit`` is the block's model, ``width`` that of the bottlenecks, ``cutoff`` None for no Fourier branch.
    """

    def __init__(self, block: nn.Module, vit: VisionTransformer, width: int, cutoff: float | None):
        super().__init__()
        dim, self.grid, self.prefix = vit.embed_dim, vit.patch_embed.grid_size, vit.num_prefix_tokens
        self.block, self.cutoff = block, cutoff
        experts = 1 if cutoff is None else 3
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, width), nn.ReLU(), zeroed(nn.Linear(width, dim))) for _ in range(experts)
        )
        self.router = nn.Linear(dim, experts) if experts > 1 else None
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, z: Tensor, **beside: Tensor) -> Tensor:
        """z: (B, N, d) -> (B, N, d)."""
        z = self.block(z, **beside)
        x = z[:, self.prefix :]
        return torch.cat([z[:, : self.prefix], x + self.scale * self.delta(x)], dim=1)

    def delta(self, x: Tensor) -> Tensor:
        """x: (B, n, d) patch tokens -> (B, n, d)."""
        if self.router is None or self.cutoff is None:
            return self.experts[0](x)
        views = (x, *split_frequencies(x, self.grid, self.cutoff))
        weights = self.router(F.layer_norm(x, x.shape[-1:])).softmax(dim=-1)
        deltas = [expert(view) for expert, view in zip(self.experts, views, strict=True)]
        return (torch.stack(deltas, dim=-1) * weights[..., None, :]).sum(-1)


@dataclass(frozen=True)
class EarthAdapter(Method):
    """Frequency-routed bottlenecks on patch tokens after each block.

    Attributes:
        width: of the bottlenecks.
        fourier_layers: blocks with the Fourier branch; ``"first_half"``, ``"all"`` or block numbers.
        cutoff: half side of the low-pass square, as a share of the Nyquist frequency, below 1.
    """

    name, label = "earth_adapter", "Earth-Adapter"
    learning_rates = (5e-4, 2e-3, 8e-3, 3.2e-2)
    tunes = r"vit\.blocks\.\d+\.(scale|router\.(weight|bias)|experts\.\d\.[02]\.(weight|bias))"

    width: int = option(64, other=8, least=1)
    fourier_layers: str | tuple[int, ...] = option("first_half", other="all")
    cutoff: float = option(0.3, other=0.6, least=0.0, below=1.0)

    def inject(self, vit: VisionTransformer) -> None:
        depth, weight = len(vit.blocks), vit.patch_embed.proj.weight
        half = self.fourier_layers == "first_half"
        fourier = tuple(range(depth // 2)) if half else choose_layers(self.fourier_layers, depth)
        for i in range(depth):
            block = FrequencyAdaptedBlock(vit.blocks[i], vit, self.width, self.cutoff if i in fourier else None)
            vit.blocks[i] = block.to(weight)
