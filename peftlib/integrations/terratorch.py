"""Backbones for TerraTorch by name: import this module, and its factories, tasks and YAML files know them.

They are ``peftlib_<method>_<backbone>``, of ``METHODS`` and ``BACKBONES``, such as ``peftlib_deflect_dinov2_small``.
Pretrained weights are frozen from the start: leave ``freeze_backbone`` False.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product

from peftlib.backbones.loading import BACKBONES, load_backbone
from peftlib.integrations.features import LayerFeatures
from peftlib.methods import METHODS, input_from
from peftlib.model.adapted_vit import adapt

try:
    from terratorch.registry import TERRATORCH_BACKBONE_REGISTRY
except ImportError as error:
    way = "pip install terratorch, or for its tests make test-terratorch, in an environment of its own"
    raise ImportError(f"peftlib.integrations.terratorch needs TerraTorch ({error}): {way}") from error

_SENTINEL2 = {
    "COASTAL_AEROSOL": "B01", "BLUE": "B02", "GREEN": "B03", "RED": "B04", "RED_EDGE_1": "B05", "RED_EDGE_2": "B06",
    "RED_EDGE_3": "B07", "NIR_BROAD": "B08", "NIR_NARROW": "B8A", "WATER_VAPOR": "B09", "CIRRUS": "B10",
    "SWIR_1": "B11", "SWIR_2": "B12",
}  # fmt: skip
_LANDSAT8 = {
    "COASTAL_AEROSOL": "B1", "BLUE": "B2", "GREEN": "B3", "RED": "B4", "NIR_NARROW": "B5", "SWIR_1": "B6",
    "SWIR_2": "B7", "CIRRUS": "B9", "THERMAL_INFRARED_1": "B10", "THERMAL_INFRARED_2": "B11",
}  # fmt: skip
BAND_NAMES = {"sentinel2": _SENTINEL2, "hls": _SENTINEL2, "landsat8": _LANDSAT8}  # TerraTorch's (HLSBands) -> ours


def build(
    method: str, backbone: str, *, bands: Sequence[str] | Mapping[str, float], sensor: str = "sentinel2",
    image_size: int | Sequence[int] | None = None, input: str | None = None, input_options: Mapping | None = None,
    pretrained: bool = True, weights: str = "default", res: float | None = None, rgb_white: float = 0.3,
    nodata: str = "error", out_indices: Sequence[int] | None = None, **options,
) -> LayerFeatures:  # fmt: skip
    """An adapted backbone; in a YAML file every argument has the prefix ``backbone_``.

    Args:
        method, backbone: from the registered name.
        bands: names in the order of the channels, ours (``"B02"``) or TerraTorch's (``"BLUE"``, see ``BAND_NAMES``);
            ``sensor="custom"``: name -> centre wavelength in nm.
        input, input_options: how the bands come in: a name in ``INPUTS`` and its options; None is the method's own.
        pretrained: False is ``weights="random"``.
        weights, res: see ``load_backbone``; sensor, image_size, rgb_white, nodata: see ``adapt``.
        out_indices: see ``LayerFeatures``. The datamodule gives reflectance in [0, 1] (``constant_scale: 1e-4``, no
            means and stds).
        options: of the method, such as ``rank``.
    """
    config = METHODS[method].from_options(options)
    vit = load_backbone(backbone, weights if pretrained else "random", res=res)
    size = tuple(image_size) if isinstance(image_size, Sequence) else image_size
    chosen = None if input is None else input_from(input, dict(input_options or {}))
    model = adapt(vit, config, own_names(bands, sensor), sensor, size, chosen, rgb_white, nodata, inplace=True)  # type: ignore[arg-type]
    return LayerFeatures(model, out_indices).train()  # Lightning leaves the mode as it finds it


def own_names(bands: Sequence[str] | Mapping[str, float], sensor: str) -> tuple[str, ...] | dict[str, float]:
    """Band names as ``adapt`` knows them, from its own or TerraTorch's (strings or the enum ``HLSBands``)."""
    if isinstance(bands, Mapping):
        return dict(bands)
    names = (getattr(band, "value", band) for band in bands)
    known = BAND_NAMES.get(sensor, {})
    return tuple(known.get(name, name) if isinstance(name, str) else name for name in names)


for _method, _backbone in product(METHODS, BACKBONES):
    _named = partial(build, _method, _backbone)
    _named.__name__ = f"peftlib_{_method}_{_backbone}"  # type: ignore[attr-defined]  # the registry's key
    TERRATORCH_BACKBONE_REGISTRY.register(_named)
