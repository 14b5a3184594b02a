"""merge: an adaptation folded into the weights of a plain ViT."""

import copy
from dataclasses import replace

from timm.models.vision_transformer import VisionTransformer

from peftlib.model.adapted_vit import AdaptedViT
from peftlib.model.precision import BF16_FROZEN


def merge(model: AdaptedViT) -> VisionTransformer:
    """Fold an adaptation into the weights of a plain timm ViT, which costs what the pretrained one does.

    ``merge(model).forward_features(model.normalize(x))`` equals ``model(x)`` in eval mode, but for rounding.
    ValueError: what does more than a plain ViT can: EMB, DEFLECT, Houlsby, VPT, Earth-Adapter.
    """
    if model.metadata is not None:
        raise ValueError(f"a plain ViT reads no metadata, and this model reads {', '.join(model.metadata.names)}")
    if model.auxiliary is not None:
        raise ValueError(f"{model.input} does more than a plain ViT can: it adds x_A to the patch tokens")
    if model.precision == BF16_FROZEN:
        cure = "save_adapter, load_adapter(vit, path, precision='float32'), and merge that"
        raise ValueError(f"the frozen weights were rounded ({BF16_FROZEN}), and a merged ViT would keep that: {cure}")
    vit = model.method.merge(copy.deepcopy(model.vit))
    left = {name for name, module in vit.named_modules() if model.plain_modules.get(name) is not type(module)}
    if left:
        name = min(left, key=lambda name: (len(name), name))
        raise ValueError(
            f"{model.method} does more than a plain ViT can: {name} is a {type(vit.get_submodule(name)).__name__}. "
            "Merged can be LoRA, SLR, APLA, norm tuning, BitFit, full fine-tuning, a frozen ViT, and HF peft's, on RGB "
            "or an inflated patch embedding"
        )
    vit.spec = replace(model.spec, weights=f"{model.spec.weights}, merged with {model.method.name}")
    return vit.requires_grad_(True).eval()
