"""EMB, the untangled patch embedding: a pixel-set encoder beside the frozen RGB patch embedding.

DEFLECT, equation (3): x = x_P + x_A. x_P is what the pretrained patch embedding makes of RGB; x_A carries the
radiometry of the other bands. Also here: the inflated patch kernel by which the other methods read those bands.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftlib.bands import BandSet, SpectralIndices
from peftlib.reflectance import Channels


class PixelSetEncoder(nn.Module):
    """x_A: one embedding a patch from the *set* of its pixels.

        s   = [ standardised bands beyond RGB, spectral indices ]
        x_A = g( mean and standard deviation over the patch of f(s) )

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
    """

    def __init__(
        self,
        bands: BandSet,
        indices: tuple[str, ...],
        dim: int,
        patch_size: tuple[int, int],
        width: int = 32,
        cells: int = 1,
    ):
        super().__init__()
        channels = len(bands.beyond_rgb) + len(indices)
        if channels == 0:
            raise ValueError(f"the pixel-set encoder reads bands beyond RGB, and bands {bands.names} have none")
        fits = [c for c in range(1, min(patch_size) + 1) if all(p % c == 0 for p in patch_size)]
        if cells not in fits:
            raise ValueError(f"cells={cells!r} does not divide the patch {patch_size}; choose from {fits}")
        self.cells = cells
        self.cell_size = tuple(p // cells for p in patch_size)
        self.indices = SpectralIndices(indices, bands)
        self.pixel_mlp = nn.Sequential(
            nn.Conv2d(channels, width, kernel_size=1), nn.GELU(), nn.Conv2d(width, width, kernel_size=1)
        )
        code = 2 * width * cells**2
        self.patch_mlp = nn.Sequential(
            nn.LayerNorm(code), nn.Linear(code, 2 * width), nn.GELU(), nn.Linear(2 * width, dim)
        )
        nn.init.zeros_(self.patch_mlp[-1].weight)
        nn.init.zeros_(self.patch_mlp[-1].bias)

    def forward(self, channels: Channels) -> Tensor:
        """-> x_A (B, n, d), patches row by row; zero for a patch without a single valid pixel."""
        spectrum = torch.cat([channels.beyond, self.indices(channels.reflectance)], dim=1)
        features = self.pixel_mlp(spectrum)
        mean, std, share = pooled_moments(features, channels.valid, self.cell_size)
        code = self._tokens(torch.cat([mean, std], dim=1))
        x_A = self.patch_mlp(code.to(self.patch_mlp[-1].weight.dtype))
        if share is None:
            return x_A
        return x_A * (self._tokens(share).sum(-1, keepdim=True) > 0)

    def _tokens(self, x: Tensor) -> Tensor:
        """(B, c, cells·gh, cells·gw) -> (B, gh·gw, c·cells²): the codes of a patch's cells side by side."""
        return F.pixel_unshuffle(x, self.cells).flatten(2).transpose(1, 2)


def pooled_moments(
    features: Tensor, valid: Tensor | None, cell_size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mean and standard deviation of features over each cell's valid pixels, by average pooling.

    Args:
        features: (B, c, H, W).
        valid: (B, 1, H, W) 1 or 0, or None when all pixels are valid.
        cell_size: (height, width) in pixels.

    Returns:
        mean and std (B, c, H / height, W / width), and the valid share of each cell (B, 1, ...) or None.
    """
    features = features if features.dtype == torch.float64 else features.float()  # squares lose too much in bfloat16
    if valid is None:
        mean, share = F.avg_pool2d(features, cell_size), None
        square = F.avg_pool2d(features.square(), cell_size)
    else:
        valid = valid.to(features.dtype)
        share = F.avg_pool2d(valid, cell_size)
        mean = F.avg_pool2d(features * valid, cell_size) / share.clamp_min(1e-6)
        square = F.avg_pool2d(features.square() * valid, cell_size) / share.clamp_min(1e-6)
    std = (square - mean.square()).clamp_min(0.0).add(1e-6).sqrt()  # the constant keeps the gradient of sqrt finite
    return mean, std, share


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
        if old.bias is not None:
            new.bias.copy_(old.bias)
    patch_embed.proj = new


def _nearest_colour(bands: BandSet, band: int) -> int:
    """0, 1 or 2: which of red, green and blue lies nearest to a band."""
    return min(range(3), key=lambda c: abs(bands.wavelengths[bands.rgb[c]] - bands.wavelengths[band]))
