"""Backbones for TerraTorch by name: import this module, and its factories, tasks and YAML files know them.

They are ``peftlib_<method>_<backbone>``, of ``METHODS`` and ``BACKBONES``, such as ``peftlib_deflect_dinov2_small``.
Pretrained weights are frozen from the start: leave ``freeze_backbone`` False.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product

from peftlib.backbones.loading import BACKBONES, load_backbone
from peftlib.integrations import LayerFeatures
from peftlib.methods import METHODS, input_from
from peftlib.model.adapted_vit import adapt

try:
    from terratorch.registry import TERRATORCH_BACKBONE_REGISTRY
except ImportError as error:
    way = "pip install terratorch, or for its tests make test-terratorch, in an environment of its own"
    raise ImportError(f"peftlib.integrations.terratorch needs TerraTorch ({error}): {way}") from error


def build(
    method: str, backbone: str, *, bands: Sequence[str] | Mapping[str, float], sensor: str = "sentinel2",
    image_size: int | Sequence[int] | None = None, input: str | None = None, input_options: Mapping | None = None,
    pretrained: bool = True, weights: str = "default", res: float | None = None, rgb_white: float = 0.3,
    nodata: str = "error", out_indices: Sequence[int] | None = None, **options,
) -> LayerFeatures:  # fmt: skip
    """An adapted backbone; in a YAML file every argument has the prefix ``backbone_``.

    Args:
        method, backbone: from the registered name.
        bands: names in the order of the channels, as for ``adapt``: ``"B02"``, not TerraTorch's ``"BLUE"``.
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
    model = adapt(vit, config, bands, sensor, size, chosen, rgb_white, nodata)  # type: ignore[arg-type]
    return LayerFeatures(model, out_indices).train()  # Lightning leaves the mode as it finds it


for _method, _backbone in product(METHODS, BACKBONES):
    _named = partial(build, _method, _backbone)
    _named.__name__ = f"peftlib_{_method}_{_backbone}"  # type: ignore[attr-defined]  # the registry's key
    TERRATORCH_BACKBONE_REGISTRY.register(_named)
