"""What each method tunes of a backbone, and what that costs on disk and in arithmetic."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from timm.models.vision_transformer import VisionTransformer
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from peftlib.methods import METHODS, Input, Method
from peftlib.model.adapted_vit import AdaptedViT, adapt, count_parameters, without_weights
from peftlib.model.adapter_file import adapter_bytes

if TYPE_CHECKING:
    import pandas

# The counter knows no products that are added in place, such as LoRA's.
flop_registry.setdefault(torch.ops.aten.addmm_, flop_registry[torch.ops.aten.addmm])


def cost_table(
    vit: VisionTransformer,
    bands: Sequence[str] | Mapping[str, float],
    sensor: str = "sentinel2",
    methods: Iterable[Method | tuple[Method, Input]] | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> "pandas.DataFrame":
    """Compare methods by counting alone: nothing is trained, and no weights are copied.

    Args:
        vit: the backbone.
        bands, sensor, image_size: as in ``adapt``.
        methods: configs, or pairs of a method and an input; None is every method with its defaults.

    Returns:
        one row a method, indexed by its config (and that of its input, where one is named): parameters tuned by the
        ``input`` and by the ``method``, ``tuned`` in all, ``percent`` of the encoder, ``adapter_bytes`` of tensors, and
        per image ``forward_gflops`` and ``step_gflops`` (forward and backward), where a multiply-add counts as two.
    """
    import pandas  # heavy, and adapting a model does not need it

    methods = [config() for config in METHODS.values()] if methods is None else list(methods)
    shape = without_weights(vit)
    rows = {}
    for given in methods:
        method, input = given if isinstance(given, tuple) else (given, None)
        with torch.random.fork_rng(devices=[]):  # counting must not move the user's random numbers
            model = adapt(shape, method, bands, sensor, image_size, input)
        forward, step = (operations / 1e9 for operations in flops(model))
        costs = {"adapter_bytes": adapter_bytes(model), "forward_gflops": forward, "step_gflops": step}
        rows[str(method) if input is None else f"{method} on {input}"] = count_parameters(model) | costs
    return pandas.DataFrame.from_dict(rows, orient="index").drop(columns="encoder").rename_axis("method")


def flops(model: AdaptedViT, whole: torch.nn.Module | None = None) -> tuple[int, int]:
    """Operations in floating point of a forward, and of a training step, on one image; of ``whole``, a task around it.

    Matrix products and convolutions, as ``torch.utils.flop_counter`` counts them; not element-wise work, norms or FFTs.
    A step has the gradients of the tuned parameters and of what lies between them and the loss, no optimiser.
    """
    whole = without_weights(whole or model)
    x = torch.empty(1, len(model.bands), *model.image_size, device="meta")
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        whole(x)
    with FlopCounterMode(display=False) as step:
        tokens = whole(x)
        if tokens.requires_grad:
            tokens.sum().backward()
    return forward.get_total_flops(), step.get_total_flops()
