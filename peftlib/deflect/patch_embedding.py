"""EMB, the untangled patch embedding: a pixel-set encoder beside the frozen RGB patch embedding.

DEFLECT, equation (3): x = x_P + x_A. x_P is what the pretrained patch embedding makes of RGB; x_A carries the
radiometry of the other bands. Also here: the inflated patch kernel by which the other methods read those bands.
"""

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from peftlib.sensors.bands import BandSet
from peftlib.sensors.reflectance import Channels
from peftlib.sensors.spectral_indices import SpectralIndices


class PixelSetEncoder(nn.Module):
    """x_A: one embedding a patch from the *set* of its pixels.

        s   = [ standardised bands beyond RGB (or the spectrum on a grid of wavelengths), spectral indices ]
        x_A = g( mean and standard deviation over the patch of f(s) )

    Of a time series (``peftlib.deflect.time_series``) s is that of one date, its day included. As a ``"set"``, f reads each date of
    a pixel, and a patch pools over pixels and dates: their order means nothing, and a date without data is one less. As
    a ``"sequence"``, f reads all dates of a pixel side by side.

    f is a small MLP on every pixel, g a small MLP on the pooled code whose last layer starts at zero, so x_A starts at
    zero and the adapted model starts as the pretrained one. Shuffling the pixels inside a cell leaves x_A unchanged: it
    can carry radiometry, never geometry.

    Args:
        bands: the image's bands.
        indices: names of spectral indices (spyndex) to read beside the bands.
        dim: width d of the tokens.
        patch_size: (p_h, p_w) in pixels.
        width: hidden width of f and, doubled by mean and deviation, of the pooled code.
        cells: split each patch into cells x cells pixel sets. 1 is the pure set of the paper; more trade its bias
            for geometry inside the patch.
        knots: the spectrum comes on a grid of so many wavelengths (``peftlib.sensors.wavelengths``); 0: as bands beyond RGB.
        series: how the dates of a time series are read, ``"set"`` or ``"sequence"``; of no effect on one image.
    """

    def __init__(
        self,
        bands: BandSet,
        indices: tuple[str, ...],
        dim: int,
        patch_size: tuple[int, int],
        width: int = 32,
        cells: int = 1,
        knots: int = 0,
        series: str = "set",
    ):
        super().__init__()
        self.dates, self.sequence = bands.dates, series == "sequence"
        channels = (knots or len(bands.beyond_rgb) // max(self.dates, 1)) + len(indices)
        if self.sequence:
            channels *= max(self.dates, 1)
        if channels == 0:
            raise ValueError(f"the pixel-set encoder reads bands beyond RGB, and bands {bands.names} have none")
        fits = [c for c in range(1, min(patch_size) + 1) if all(p % c == 0 for p in patch_size)]
        if cells not in fits:
            raise ValueError(f"cells={cells!r} does not divide the patch {patch_size}; choose from {fits}")
        self.cells = cells
        self.cell_size = tuple(p // cells for p in patch_size)
        self.indices = SpectralIndices(indices, bands.of_one_date)
        self.pixel_mlp = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, width))
        code = 2 * width * cells**2
        self.patch_mlp = nn.Sequential(
            nn.LayerNorm(code), nn.Linear(code, 2 * width), nn.GELU(), nn.Linear(2 * width, dim)
        )
        nn.init.zeros_(self.patch_mlp[-1].weight)
        nn.init.zeros_(self.patch_mlp[-1].bias)

    def forward(self, channels: Channels) -> Tensor:
        """-> x_A (B, n, d), patches row by row; zero for a patch without a single valid pixel."""
        parts = channels.split(self._images_at_once(channels.x))
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            codes = [checkpoint(self.code, part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        else:
            codes = [self.code(part) for part in parts]
        x_A = self.patch_mlp(torch.cat(codes).to(self.patch_mlp[-1].weight.dtype))
        valid = self.valid(channels)
        return x_A if valid is None else x_A * self._patches(valid.amax(-2)).amax(-1, keepdim=True)

    def code(self, channels: Channels) -> Tensor:
        """Mean and standard deviation of f(s) over the pixels of each cell: (B, n, 2 width cells²)."""
        hidden = self.pixel_mlp[:2](self.members(channels))
        moments = mapped_moments(hidden, self.pixel_mlp[2], self.valid(channels))
        return self._patches(torch.cat(moments, dim=-1))

    def members(self, channels: Channels) -> Tensor:
        """s of what each cell is a set of, its pixels or their dates: (B, rows, columns, members, c)."""
        beyond, reflectance = channels.beyond, channels.reflectance
        if self.dates:  # each date an image of its own
            beyond, reflectance = (x.unflatten(1, (self.dates, -1)).flatten(0, 1) for x in (beyond, reflectance[:, 3:]))
        spectrum = torch.cat([beyond, self.indices(reflectance)], dim=1)
        if self.dates and self.sequence:
            spectrum = spectrum.unflatten(0, (-1, self.dates)).flatten(1, 2)
        return self._cells(spectrum)

    def valid(self, channels: Channels) -> Tensor | None:
        """1 or 0 for each of ``members``, (B, rows, columns, members, 1); None when all have data."""
        valid = channels.valid
        if valid is None:
            return None
        if self.dates:
            valid = valid.amax(1, keepdim=True) if self.sequence else valid.flatten(0, 1)[:, None]
        return self._cells(valid)

    def _images_at_once(self, x: Tensor) -> int:
        """What is made of each pixel is made again in the backward pass, not kept; on a CPU it also stays in cache."""
        at_once = x.device.type != "cpu" or torch.compiler.is_compiling()
        return max(1, len(x) if at_once else 40_000 // (math.prod(x.shape[2:]) * max(self.dates, 1)))

    def _cells(self, x: Tensor) -> Tensor:
        """(B, c, H, W) -> (B, rows of cells, columns of cells, pixels of a cell, c). Dates, (B T, ...), are pixels."""
        height, width = self.cell_size
        x = x.unflatten(3, (-1, width)).unflatten(2, (-1, height))
        x = x.permute(0, 2, 4, 3, 5, 1).flatten(3, 4)
        if self.dates and not self.sequence:
            x = x.unflatten(0, (-1, self.dates)).movedim(1, 3).flatten(3, 4)
        return x

    def _patches(self, x: Tensor) -> Tensor:
        """(B, rows of cells, columns of cells, c) -> (B, n, c·cells²): the codes of a patch's cells side by side."""
        x = x.unflatten(2, (-1, self.cells)).unflatten(1, (-1, self.cells))
        return x.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)


def mapped_moments(hidden: Tensor, layer: nn.Linear, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, over the pixels of each cell, of what a linear layer makes of them.

    The layer itself never runs on a pixel: the mean of W h + b is W mean(h) + b, its variances are the diagonal of
    W cov(h) W^T, and the covariance of a cell's pixels is one small matrix product.

    Args:
        hidden: (..., P, w) P pixels a cell.
        layer: w -> c.
        valid: (..., P, 1) 1 or 0, or None when all pixels are valid. A cell without any has mean and deviation near 0.

    Returns:
        two of (..., c).
    """
    exact = hidden.dtype if hidden.dtype == torch.float64 else torch.float32  # squares lose too much in bfloat16
    with nullcontext() if hidden.is_meta else torch.autocast(hidden.device.type, enabled=False):
        h, W = hidden.to(exact), layer.weight.to(exact)
        counted = h if valid is None else h * valid.to(exact)
        pixels = h.shape[-2] if valid is None else valid.to(exact).sum(-2).clamp_min(1e-6)[..., None]
        mean = counted.sum(-2, keepdim=True) / pixels
        covariance = counted.transpose(-2, -1) @ h / pixels - mean.transpose(-2, -1) * mean
        variance = ((W @ covariance) * W).sum(-1)
        std = variance.clamp_min(0.0).add(1e-6).sqrt()  # the constant keeps the gradient of sqrt finite
        mean = F.linear(mean.squeeze(-2), W, layer.bias.to(exact))
        return mean if valid is None else mean * valid.to(exact).amax(-2), std


# --- how the other methods read bands beyond RGB ---------------------------------------------------------------------

INFLATIONS = ("zero", "repeat", "mean", "random", "nearest")


def inflate_patch_embed(
    patch_embed: nn.Module, bands: BandSet, how: str, rgb_order: tuple[int, int, int] = (0, 1, 2)
) -> None:
    """Give a timm ``PatchEmbed`` kernels for the bands beyond RGB, in place: behind the model's own three channels.

    Args:
        patch_embed: with ``proj``, an RGB ``nn.Conv2d``; its three kernels stay those of red, green and blue, by name.
        how: kernels of the new bands:
            ``zero``     zero, so the model starts as the pretrained one;
            ``repeat``   red, green, blue in turn;
            ``mean``     the mean of the three;
            ``random``   as a fresh layer would draw them;
            ``nearest``  that of the colour nearest in wavelength.
            ``repeat``, ``mean`` and ``nearest`` scale all kernels by 3 / C: the blocks see values of the same size.
        rgb_order: positions in (red, green, blue) of the model's own channels.
    """
    if how not in INFLATIONS:
        raise ValueError(f"unknown inflation {how!r}; choose from {INFLATIONS}")
    old = patch_embed.proj
    rgb = old.weight.detach()  # (d, 3, p_h, p_w)
    new_bands = len(bands.beyond_rgb)
    new = nn.Conv2d(
        3 + new_bands, old.out_channels, old.kernel_size, old.stride, bias=old.bias is not None,
        device=rgb.device, dtype=rgb.dtype,
    )  # fmt: skip
    colours = {
        "repeat": [i % 3 for i in range(new_bands)],
        "nearest": [_nearest_colour(bands, i) for i in bands.beyond_rgb],
    }
    with torch.no_grad():
        if how == "zero":
            extra = torch.zeros_like(new.weight[:, 3:])
        elif how == "random":
            extra = new.weight[:, 3:].clone()
        elif how == "mean":
            extra = rgb.mean(1, keepdim=True).expand(-1, new_bands, -1, -1)
        else:
            extra = rgb[:, [rgb_order.index(colour) for colour in colours[how]]]
        scale = 1.0 if how in ("zero", "random") else 3 / (3 + new_bands)
        new.weight.copy_(torch.cat([rgb, extra], dim=1) * scale)
        if new.bias is not None:
            new.bias.copy_(old.bias)
    patch_embed.proj = new


def _nearest_colour(bands: BandSet, band: int) -> int:
    """0, 1 or 2: which of red, green and blue lies nearest to a band."""
    return min(range(3), key=lambda c: abs(bands.wavelengths[bands.rgb[c]] - bands.wavelengths[band]))
