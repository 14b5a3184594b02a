"""EMB, the untangled patch embedding: a pixel-set encoder beside the frozen RGB patch embedding.

DEFLECT, equation (3): x = x_P + x_A. x_P is what the pretrained patch embedding makes of RGB; x_A carries the
radiometry of the other bands. EMB is an input: it works under every method.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peftlib.methods.base import Input, option, zeroed
from peftlib.sensors.bands import BandSet
from peftlib.sensors.reflectance import Reflectance, exactly
from peftlib.sensors.spectral_indices import SpectralIndices, available_indices
from peftlib.sensors.wavelengths import KNOTS, resampling


@dataclass(frozen=True)
class EMB(Input):
    """Untangled patch embedding: RGB as pretrained, plus x_A from the set of each patch's pixels.

    Attributes:
        width: hidden width of the pixel-set encoder.
        cells: cells x cells pixel sets a patch. 1 is the pure set of the paper; more trade its bias for geometry.
        indices: ``"auto"`` (those of NDVI, NDWI, MNDWI, NBR, NDMI, BI that the bands allow) or names of spyndex, of
            indices that lie in [-1, 1]. ``pl.transfer`` refuses a sensor that lacks the bands of one.
        spectral: what the encoder's first layer reads: ``"bands"``, those beyond RGB, by position; or
            ``"wavelengths"``, the whole spectrum on a fixed grid (``peftlib.sensors.wavelengths``), so that one adapter
            serves sensors with different bands (``pl.transfer``). Bands that water vapour hides are then left out.
        pixels: in training, read so many pixels of each cell, drawn anew each step; 0 reads all, as evaluation does.
    """

    name, label, paper = "emb", "EMB", "Thoreau, Marsocci, Derksen, ICCV 2025"
    learning_rates = (5e-4, 2e-3, 8e-3, 3.2e-2)
    tunes = r"auxiliary\.(pixel_mlp\.[02]|patch_mlp\.[013])\.(weight|bias)"
    gives_auxiliary = True

    width: int = option(32, other=8, least=1)
    cells: int = option(1, other=2, least=1)
    indices: str | tuple[str, ...] = option("auto", other=())
    spectral: str = option("bands", other="wavelengths", choices=("bands", "wavelengths"))
    pixels: int = option(0, other=7, least=0)

    def __post_init__(self):
        super().__post_init__()
        if self.indices != "auto" and not isinstance(self.indices, tuple):
            raise ValueError(f"EMB(indices={self.indices!r}); choose 'auto' or a tuple of spyndex names")

    @property
    def reads_any_bands(self) -> bool:
        return self.spectral == "wavelengths"

    def resampling(self, bands: BandSet) -> Tensor | None:
        return resampling(bands) if self.spectral == "wavelengths" else None

    def inject(self, vit: VisionTransformer, bands: BandSet) -> nn.Module:
        if not bands.beyond_rgb:
            raise ValueError(f"EMB reads bands beyond RGB, and bands {bands.names} have none; use pl.RGB()")
        indices = available_indices(bands) if self.indices == "auto" else tuple(self.indices)
        channels = len(KNOTS) if self.spectral == "wavelengths" else len(bands.beyond_rgb)
        return PixelSetEncoder(
            SpectralIndices(indices, bands), channels + len(indices), vit.embed_dim, vit.patch_embed.patch_size, self
        ).to(vit.patch_embed.proj.weight)


class PixelSetEncoder(nn.Module):
    """x_A: one embedding a patch from the *set* of its pixels.

        s   = [ standardised bands beyond RGB (or the spectrum on a grid of wavelengths), spectral indices ]
        x_A = g( mean and standard deviation over the patch of f(s) )

    f is a small MLP on every pixel, g a small MLP on the pooled code whose last layer starts at zero, so x_A starts at
    zero and the adapted model starts as the pretrained one. Shuffling the pixels inside a cell leaves x_A unchanged: it
    can carry radiometry, never geometry.

    Args: spectral indices, channels of s, width d of the tokens, patch size (p_h, p_w) in pixels, and the config, whose
    cells must divide the patch (else ValueError).
    """

    def __init__(self, indices: SpectralIndices, channels: int, dim: int, patch_size: tuple[int, int], config: EMB):
        super().__init__()
        width, cells = config.width, config.cells
        fits = [c for c in range(1, min(patch_size) + 1) if all(p % c == 0 for p in patch_size)]
        if cells not in fits:
            raise ValueError(f"cells={cells!r} does not divide the patch {patch_size}; choose from {fits}")
        self.indices, self.cells, self.pixels = indices, cells, config.pixels
        self.cell_size = tuple(p // cells for p in patch_size)
        self.set_size = math.prod(self.cell_size)
        self.pixel_mlp = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, width))
        code = 2 * width * cells**2
        self.patch_mlp = nn.Sequential(
            nn.LayerNorm(code), nn.Linear(code, 2 * width), nn.GELU(), zeroed(nn.Linear(2 * width, dim))
        )

    def formula(self, s: Tensor, valid: Tensor | None = None) -> Tensor:
        """x_A as its equation reads; ``forward`` computes the same in less memory (a test holds that).

        s: (B, c, H, W), valid: (B, 1, H, W) of 0 and 1, or None -> (B, n, d).
        """
        h = self.pixel_mlp(self.in_cells(s))  # f on every pixel: (B, rows, columns, P, w)
        w = torch.ones_like(h[..., :1]) if valid is None else self.in_cells(valid).to(h.dtype)
        mean = (w * h).sum(-2) / w.sum(-2).clamp_min(1e-6)
        var = (w * (h - mean[..., None, :]) ** 2).sum(-2) / w.sum(-2).clamp_min(1e-6)
        code = self.in_patches(torch.cat([mean, (var + 1e-6).sqrt()], dim=-1))
        seen = self.in_patches(w.amax(-2)).amax(-1, keepdim=True)
        return self.patch_mlp(code) * seen

    # --- the same, fast ---

    def forward(self, reflectance: Reflectance, x: Tensor) -> Tensor:
        """x: (B, C, H, W) reflectance -> x_A (B, n, d), patches row by row; zero for a patch without a valid pixel."""
        s, valid = self.members(reflectance, x)
        if self.training and 0 < self.pixels < self.set_size:  # others in each step
            keep = torch.randperm(self.set_size, device=x.device)[: self.pixels]
            s, valid = s[..., keep, :], None if valid is None else valid[..., keep, :]
        first, _, last = self.pixel_mlp
        code = self.in_patches(torch.cat(mapped_moments(*hidden_moments(s, first, valid), last, valid), dim=-1))
        x_A = self.patch_mlp(code.to(self.patch_mlp[-1].weight.dtype))
        return x_A if valid is None else x_A * self.in_patches(valid.amax(-2)).amax(-1, keepdim=True)

    def members(self, reflectance: Reflectance, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """s of each cell's pixels: (B, rows, columns, P, c); and (..., P, 1), 1 where all bands have data, or None."""
        s = torch.cat([reflectance.beyond(x), self.indices(reflectance.filled(x))], dim=1)
        valid = reflectance.valid(x)
        return self.in_cells(s), None if valid is None else self.in_cells(valid.all(1, keepdim=True).to(x.dtype))

    def in_cells(self, x: Tensor) -> Tensor:
        """(B, c, H, W) -> (B, rows of cells, columns of cells, pixels P of a cell, c)."""
        height, width = self.cell_size
        x = x.unflatten(3, (-1, width)).unflatten(2, (-1, height))
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3, 4)

    def in_patches(self, x: Tensor) -> Tensor:
        """(B, rows of cells, columns of cells, c) -> (B, n, c·cells²): the codes of a patch's cells side by side."""
        x = x.unflatten(2, (-1, self.cells)).unflatten(1, (-1, self.cells))
        return x.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)


def mapped_moments(mean: Tensor, second: Tensor, layer: nn.Linear, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, over the pixels of each cell, of what a linear layer makes of them.

    The layer itself never runs on a pixel: the mean of W h + b is W mean(h) + b, and its variances are the diagonal of
    W cov(h) W^T.

    mean: (..., w) of h; second: (..., w, w) mean of h h^T; layer: w -> c; valid: as for ``hidden_moments``
    -> two of (..., c). A cell without a valid pixel has mean and deviation near 0.
    """
    with exactly(mean):
        W, b = layer.weight.to(mean.dtype), layer.bias.to(mean.dtype)
        covariance = second - mean[..., :, None] * mean[..., None, :]
        variance = ((W @ covariance) * W).sum(-1)
        std = variance.clamp_min(0.0).add(1e-6).sqrt()  # the constant keeps the gradient of sqrt finite
        mean = F.linear(mean, W, b)
        return mean if valid is None else mean * valid.to(mean.dtype).amax(-2), std


def hidden_moments(s: Tensor, layer: nn.Linear, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Means of h and of h h^T over the pixels of each cell, for h = GELU(W s + b).

    s: (..., P, c) P pixels a cell; layer: c -> w; valid: (..., P, 1) 1 or 0, or None -> (..., w), (..., w, w).
    """
    with exactly(s):
        s = s if s.dtype == torch.float64 else s.float()  # squares lose too much in bfloat16
        W, b = layer.weight.to(s.dtype), layer.bias.to(s.dtype)
        w = None if valid is None else valid.to(s.dtype).flatten(0, -3)
        mean, second = _HiddenMoments.apply(s.flatten(0, -3), W, b, w)
        return mean.view(*s.shape[:-2], len(W)), second.view(*s.shape[:-2], len(W), len(W))


class _HiddenMoments(torch.autograd.Function):
    """Gradients written out, so that h is made again in the backward pass, not kept; on a CPU it stays in cache.

    With n valid pixels in a cell, for gradients m of the mean and Q of the second moment,

        dh = ((Q + Q^T) h + m) / n     of a valid pixel
    """

    @staticmethod
    def forward(ctx, s: Tensor, W: Tensor, b: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(s, W, b, valid)
        means, seconds = [], []
        for part, w in _HiddenMoments.parts(s, valid):
            h = F.gelu(F.linear(part, W, b))
            counted = h if w is None else h * w
            n = h.shape[1] if w is None else w.sum(1, keepdim=True).clamp_min(1e-6)
            means.append((counted.sum(1, keepdim=True) / n).squeeze(1))
            seconds.append(counted.transpose(1, 2) @ h / n)
        return torch.cat(means), torch.cat(seconds)

    @staticmethod
    def parts(s: Tensor, valid: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Cells together that fit a processor's cache; elsewhere all."""
        whole = torch.compiler.is_compiling() or s.device.type != "cpu"
        some = len(s) if whole else max(1, 40_000 // s.shape[1])
        yield from zip(s.split(some), repeat(None) if valid is None else valid.split(some), strict=False)

    @staticmethod
    @once_differentiable
    def backward(ctx, dmean: Tensor, dsecond: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        s, W, b, valid = ctx.saved_tensors
        dW, db, ds, done = torch.zeros_like(W), torch.zeros_like(b), [], 0
        for part, w in _HiddenMoments.parts(s, valid):
            cells = slice(done, done := done + len(part))
            a = F.linear(part, W, b)
            dh = torch.baddbmm(dmean[cells, None], F.gelu(a), dsecond[cells] + dsecond[cells].transpose(1, 2))
            dh = dh / part.shape[1] if w is None else dh * (w / w.sum(1, keepdim=True).clamp_min(1e-6))
            da = torch.ops.aten.gelu_backward(dh, a).flatten(0, 1)
            dW.addmm_(da.T, part.flatten(0, 1))
            db += da.sum(0)
            if ctx.needs_input_grad[0]:
                ds.append((da @ W).view_as(part))
        return torch.cat(ds) if ds else None, dW, db, None
