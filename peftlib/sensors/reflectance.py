"""From reflectance to what the layers read: value checks, the RGB stretch, per-band standardisation, no-data pixels.

The model normalises inside, so that users cannot get it wrong.
"""

from collections.abc import Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from peftlib.sensors.bands import THERMAL_FROM, BandSet

NODATA = ("error", "zero")

# Surface and top-of-atmosphere reflectance stays near [0, 1]: clouds, snow and glint reach 1.6, saturated pixels of
# published data sets 2.8; atmospheric correction leaves slightly negative water.
USUAL = (-0.2, 1.6)
POSSIBLE = (-1.0, 10.0)
KELVIN = (100.0, 400.0)
UNUSUAL_SHARE = 0.05  # more than this share of values outside USUAL is not reflectance
FARTHEST = 4e3  # deviations from the mean; farther is what a band that was nearly constant in ``fit`` makes of others


def check_reflectance(
    x: Tensor, bands: BandSet, image_size: tuple[int, int], nodata: str = "error", read: bool = True
) -> None:
    """Refuse an image that the model would silently misread: of wrong shape or type, or no reflectance (ValueError).

    Args:
        x: (B, C, H, W) reflectance in [0, 1] (thermal bands in kelvin); image_size: (H, W) of the model.
        nodata: ``"error"`` refuses NaN and infinite pixels, ``"zero"`` lets them pass.
        read: whether to look at values; shape and type cost nothing on any device.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"expected float reflectance (B, C, H, W), got shape {tuple(x.shape)}, {x.dtype}")
    if x.shape[1] != len(bands):
        raise ValueError(f"image has {x.shape[1]} channels, the model was adapted to {len(bands)} bands: {bands.names}")
    if tuple(x.shape[2:]) != tuple(image_size):
        cure = "resize the image or pass image_size= to adapt"
        raise ValueError(f"image is {tuple(x.shape[2:])} pixels, the model reads {tuple(image_size)}; {cure}")
    if x.numel() == 0 or not read:
        return
    values = x.detach()
    low, high = values.aminmax()
    if not bands.thermal and low >= USUAL[0] and high <= USUAL[1]:  # nearly always; NaN is neither
        return
    finite = torch.isfinite(values)
    if nodata == "error" and not finite.all():
        bad = (~finite).sum(dim=(0, 2, 3)).tolist()
        counts = {name: n for name, n in zip(bands.names, bad, strict=True) if n}
        raise ValueError(f"image has NaN or infinite pixels, per band {counts}; mask them, or adapt(nodata='zero')")
    for i in bands.thermal:
        kelvin = values[:, i][finite[:, i]]
        if kelvin.numel() and not (kelvin.min() >= KELVIN[0] and kelvin.max() <= KELVIN[1]):
            found = f"[{kelvin.min():.4g}, {kelvin.max():.4g}]"
            raise ValueError(f"thermal band {bands.names[i]} lies in {found}, expected kelvin, {KELVIN}")
    rows = [i for i, nm in enumerate(bands.wavelengths) if nm < THERMAL_FROM]  # NaN: no reflectance
    optical = values[:, rows][finite[:, rows]]
    if optical.numel() == 0:
        return
    least, most = (float(v) for v in optical.aminmax())
    unusual = float(((optical < USUAL[0]) | (optical > USUAL[1])).float().mean())
    if least < POSSIBLE[0] or most > POSSIBLE[1] or unusual > UNUSUAL_SHARE:
        raise ValueError(
            f"image lies in [{least:.4g}, {most:.4g}], {unusual:.0%} of it outside {list(USUAL)}: expected reflectance "
            f"in [0, 1]. Digital numbers? Divide by the product's scale (10000 for Sentinel-2, 255 for 8-bit), and "
            f"turn fill values into NaN"
        )


def exactly(x: Tensor):
    """No autocast."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


class Reflectance(nn.Module):
    """From a checked image to what the layers read: normalised RGB, standardised other bands, and where data are.

    RGB is divided by ``rgb_white`` and clipped to [0, 1] (pretraining saw bright 8-bit pictures, reflectance is dark),
    then takes the backbone's own mean and deviation. Other bands are standardised with buffers that travel with the
    adapter: sensor defaults until ``fit``.

    Args:
        bands, image_size: of the image, (H, W) in pixels.
        rgb_mean, rgb_std: the backbone's normalisation of RGB in [0, 1].
        rgb_white: reflectance that the stretch maps to 1.
        nodata: ``"error"`` or ``"zero"``: non-finite RGB values become the backbone's mean colour, and a pixel with any
            non-finite band is absent from the pixel set. What lies under it (NaN, inf, -inf) never matters.
        resample: (K, C) what turns all bands into the K values that are standardised in place of those beyond RGB.
    """

    def __init__(
        self,
        bands: BandSet,
        image_size: tuple[int, int],
        rgb_mean: Iterable[float],
        rgb_std: Iterable[float],
        rgb_white: float = 0.3,
        nodata: str = "error",
        resample: Tensor | None = None,
    ):
        super().__init__()
        if nodata not in NODATA:
            raise ValueError(f"nodata={nodata!r}; choose from {NODATA}")
        if not rgb_white > 0:
            raise ValueError(f"rgb_white={rgb_white!r}; it is a reflectance and must be positive")
        self.bands, self.image_size = bands, (image_size[0], image_size[1])
        self.rgb_channels, self.beyond_channels = list(bands.rgb), list(bands.beyond_rgb)
        self.rgb_white, self.nodata = float(rgb_white), nodata
        self.register_buffer("resample", resample, persistent=False)
        for name, values in zip(("mean", "std"), bands.statistics(), strict=True):
            values = values[self.beyond_channels] if resample is None else resample @ values
            self.register_buffer(name, values.view(-1, 1, 1))
        self.register_buffer("rgb_mean", torch.tensor(list(rgb_mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("rgb_std", torch.tensor(list(rgb_std)).view(3, 1, 1), persistent=False)
        self._checked_on_device = False

    def rgb(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) reflectance -> (B, 3, H, W) in the backbone's normalisation."""
        rgb = self.filled(x)[:, self.rgb_channels]
        rgb = ((rgb / self.rgb_white).clamp(0.0, 1.0) - self.rgb_mean) / self.rgb_std
        return rgb if self.nodata == "error" else rgb * torch.isfinite(x[:, self.rgb_channels])

    def beyond(self, x: Tensor) -> Tensor:
        """The other bands, standardised: (B, C, H, W) -> (B, C - 3, H, W), or resampled (B, K, H, W); 0 without data.

        No value is farther than ``FARTHEST`` from the mean: float16 ends at 65504.
        """
        values = self._values(x)
        beyond = ((values - self.mean) / self.std).clamp(-FARTHEST, FARTHEST)
        return beyond if self.nodata == "error" else torch.where(torch.isfinite(values), beyond, 0.0)

    def filled(self, x: Tensor) -> Tensor:
        """(B, C, H, W) as given, no-data replaced by zero; spectral indices are computed from it."""
        return x if self.nodata == "error" else torch.where(torch.isfinite(x), x, 0.0)

    def valid(self, x: Tensor) -> Tensor | None:
        """(B, C, H, W) True where a band has data; None when all pixels of all bands do."""
        return None if self.nodata == "error" else torch.isfinite(x)

    def _values(self, x: Tensor) -> Tensor:
        """What is standardised: the bands beyond RGB, or all of them resampled."""
        if self.resample is None:
            return x[:, self.beyond_channels]
        with exactly(x):  # differences matter
            return torch.einsum("kc,bchw->bkhw", self.resample.to(x.dtype), x)

    def check(self, x: Tensor) -> None:
        """``check_reflectance`` of every CPU batch; elsewhere of the first: reading values back makes steps wait."""
        if torch.compiler.is_compiling() or x.is_meta:
            return
        on_cpu = x.device.type == "cpu"
        check_reflectance(x, self.bands, self.image_size, self.nodata, read=on_cpu or not self._checked_on_device)
        self._checked_on_device = not on_cpu

    @torch.no_grad()
    def fit(self, batches: Iterable) -> None:
        """Set mean and deviation of the bands beyond RGB from data, ignoring no-data pixels.

        A constant band keeps the deviation 1: it reads as zero. ValueError: a band without a single valid pixel.

        ``batches``: (B, C, H, W) tensors, or dicts or tuples whose ``"image"`` or first item is one.
        """
        share = (lambda moments: moments) if self.resample is not None else self.bands.pooled
        near = self.mean.double().cpu().view(-1, 1)  # sums of values far from zero would cancel
        count, total, squares = torch.zeros(3, len(near), dtype=torch.float64)
        for batch in batches:
            x = batch["image"] if isinstance(batch, dict) else batch[0] if isinstance(batch, tuple | list) else batch
            check_reflectance(x, self.bands, tuple(x.shape[2:]), self.nodata)
            values = self._values(x.to(self.mean.device)).double().cpu().transpose(0, 1).flatten(1)  # (C - 3, pixels)
            finite = torch.isfinite(values)
            values = torch.where(finite, values - near, 0.0)
            count += share(finite.sum(1))
            total += share(values.sum(1))
            squares += share(values.square().sum(1))
        if (count == 0).any():
            empty = list(self.bands.names)  # resampled, a pixel counts where every band has data
            if self.resample is None:
                empty = [self.bands.names[b] for b, n in zip(self.beyond_channels, count, strict=True) if n == 0]
            raise ValueError(f"no valid pixels to fit the normalisation of {empty}; was the loader empty?")
        shift = total / count
        std = (squares / count - shift.square()).clamp_min(0.0).sqrt()
        self.mean.copy_((near[:, 0] + shift).view(-1, 1, 1))
        self.std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)).view(-1, 1, 1))  # a constant band stays 0
