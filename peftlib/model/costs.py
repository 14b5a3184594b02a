"""What each method tunes of a backbone, and what that costs on disk and in arithmetic."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from timm.models.vision_transformer import VisionTransformer
from torch.utils.flop_counter import FlopCounterMode

from peftlib.methods import METHODS, Method
from peftlib.methods.base import changed
from peftlib.model.adapted_vit import AdaptedViT, adapt, count_parameters, without_weights
from peftlib.model.adapter_file import adapter_bytes

if TYPE_CHECKING:
    import pandas


def cost_table(
    vit: VisionTransformer,
    bands: Sequence[str] | Mapping[str, float],
    sensor: str = "sentinel2",
    methods: Iterable[Method] | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> "pandas.DataFrame":
    """Compare methods by counting alone: nothing is trained, and no weights are copied.

    Args:
        vit: the backbone.
        bands, sensor, image_size: as in ``adapt``. Methods whose ``new_bands`` is ``"ignore"`` read RGB of them.
        methods: configs; None is every method with its defaults.

    Returns:
        one row a method, indexed by its config: ``tuned`` parameters, ``tuned_input`` of them for reading bands,
        ``percent`` of the encoder, ``adapter_bytes`` on disk, and per image ``forward_gflops`` and ``step_gflops``
        (forward and backward), where a multiply-add counts as two.
    """
    import pandas  # heavy, and adapting a model does not need it

    methods = [config() for config in METHODS.values()] if methods is None else list(methods)
    shape = without_weights(vit)
    rows = {}
    for method in methods:
        with torch.random.fork_rng(devices=[]):  # counting must not move the user's random numbers
            model = adapt(shape, method, bands, sensor, image_size)
        counts = count_parameters(model)
        del counts["encoder"]
        forward, step = flops(model)
        rows[str(method)] = {
            **counts,
            "adapter_bytes": adapter_bytes(model),
            "forward_gflops": forward / 1e9,
            "step_gflops": step / 1e9,
        }
    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def flops(model: AdaptedViT) -> tuple[int, int]:
    """Floating-point operations of a forward, and of a training step, on one image.

    Matrix products and convolutions, as ``torch.utils.flop_counter`` counts them; not element-wise work, norms or FFTs.
    A step has the gradients of the tuned parameters and of what lies between them and the loss, no optimiser.
    """
    model = without_weights(model)
    x = torch.empty(1, len(model.bands), *model.image_size, device="meta")
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(x)
    with FlopCounterMode(display=False) as step:
        tokens = model(x)
        if tokens.requires_grad:
            tokens.sum().backward()
    return forward.get_total_flops(), step.get_total_flops()


def growth(vit: VisionTransformer, bands: Sequence[str], sensor: str = "sentinel2") -> "pandas.DataFrame":
    """How the arithmetic of a training step grows with image size, bands, rank and adapted blocks, by counting.

    Args:
        vit: the backbone.
        bands: the most bands to read; fewer are the first of them (red, green and blue first).

    Returns:
        columns knob, value, method ("full", "lora" or "deflect"), step_gflops of one image.
    """
    import pandas

    shape, patch, depth = without_weights(vit), vit.patch_embed.patch_size[0], len(vit.blocks)
    reads, side = {"new_bands": "zero", "train_patch_embed": True}, 8 * patch
    full, lora, deflect = METHODS["full"](**reads), METHODS["lora"](**reads), METHODS["deflect"]()
    tries: list[tuple[str, int, Method, Sequence[str], int]] = []
    for method in (full, lora, deflect):
        tries += [("image side, pixels", pixels, method, bands, pixels) for pixels in (side // 2, side, 2 * side)]
        tries += [("bands", count, method, bands[:count], side) for count in range(4, len(bands) + 1, 4)]
    for method in (lora, deflect):
        tries += [("rank", rank, changed(method, rank=rank), bands, side) for rank in (2, 8, 32, 64)]
        for blocks in sorted({0, depth // 3, 2 * depth // 3, depth}):
            last = changed(method, layers=tuple(range(depth - blocks, depth)))
            tries.append(("adapted blocks, last ones", blocks, last, bands, side))
    rows = []
    for knob, value, method, read, pixels in tries:
        with torch.random.fork_rng(devices=[]):
            step = flops(adapt(shape, method, read, sensor, pixels))[1]
        rows.append({"knob": knob, "value": value, "method": method.name, "step_gflops": step / 1e9})
    return pandas.DataFrame(rows)


def kept_bytes(model: AdaptedViT, x: torch.Tensor) -> int:
    """Bytes that a forward pass keeps for the backward one, beside the model's own parameters and buffers.

    x: (B, C, H, W) reflectance. Grows with B.
    """
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), x)}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tokens = model(x)  # alive until all is counted: no address comes twice
    del tokens
    return sum(kept.values())
