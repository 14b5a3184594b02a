"""An adapted ViT inside other frameworks: what their necks and decoders expect of a backbone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from peftlib.model.adapted_vit import AdaptedViT


class LayerFeatures(nn.Module):
    """Tokens after several blocks, in the form that TerraTorch's backbones have: class token, then patches row by row.

    Register tokens are left out. A ViT without a class token gives the mean of its patches in that place.

    ``out_indices``: numbers of the blocks to read, from 0; None is all of them.
    """

    def __init__(self, model: AdaptedViT, out_indices: Sequence[int] | None = None):
        super().__init__()
        self.out_indices = list(range(len(model.vit.blocks))) if out_indices is None else list(out_indices)
        self.model = model
        self.out_channels = [model.vit.embed_dim] * len(self.out_indices)
        even = not any(side % 2 for side in model.image_size)  # TerraTorch pads to a multiple of twice the patch size
        self.patch_size = tuple(side // 2 for side in model.image_size) if even else None  # None: no padding
        self.tunes = any(p.requires_grad for p in model.parameters())

    def forward(self, x: Tensor) -> list[Tensor]:
        """x: (B, C, H, W) reflectance -> for each of ``out_indices`` tokens (B, 1 + n, d).

        ValueError: no reflectance (see ``check_reflectance``); training with a frozen adapter.
        """
        frozen = self.tunes and not any(p.requires_grad for p in self.parameters())
        if frozen and self.training and torch.is_grad_enabled():
            why = "freeze_backbone=True froze the adapter too; leave it False, pretrained weights are frozen already"
            raise ValueError(f"{self.model.method.name} has nothing left to train: {why}")
        vit, found = self.model.vit, []
        for z in self.model.intermediate_tokens(x, self.out_indices):
            patches = z[:, vit.num_prefix_tokens :]
            first = z[:, :1] if vit.cls_token is not None else patches.mean(1, keepdim=True)
            found.append(torch.cat([first, patches], dim=1))
        return found

    def prepare_features_for_image_model(self, features: list[Tensor]) -> list[Tensor]:
        """Tokens (B, 1 + n, d) -> maps (B, d, h, w), for models that were given no neck."""
        return [z[:, 1:].transpose(1, 2).unflatten(2, self.model.grid_size) for z in features]
