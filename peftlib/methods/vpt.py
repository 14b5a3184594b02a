"""VPT: learnt prompt tokens beside the image's own (Jia et al., ECCV 2022)."""

import math
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peftlib.methods.base import Method, option


class PromptedBlock(nn.Module):
    """A frozen block that sees p learnt tokens behind so many ``prefix`` tokens (class, registers).

    ``prompts`` (1, p, d) are inserted before the block, None where they are there already; behind it so many tokens are
    left out (``drop``). ``dropout`` is that of prompts, in training.
    """

    def __init__(self, block: nn.Module, prompts: nn.Parameter | None, drop: int, prefix: int, dropout: float):
        super().__init__()
        self.block, self.prompts, self.drop, self.prefix = block, prompts, drop, prefix
        self.dropout = nn.Dropout(dropout)

    def forward(self, z: Tensor, **beside: Tensor) -> Tensor:
        """z: (B, N, d) -> (B, N, d); (B, N + p, d) between the first and the last block of the shallow variant."""
        if self.prompts is not None:
            prompts = self.dropout(self.prompts).expand(len(z), -1, -1)
            z = torch.cat([z[:, : self.prefix], prompts, z[:, self.prefix :]], dim=1)
        z = self.block(z, **beside)
        if self.drop:
            z = torch.cat([z[:, : self.prefix], z[:, self.prefix + self.drop :]], dim=1)
        return z


@dataclass(frozen=True)
class VPT(Method):
    """Visual prompt tuning. Prompts take part in attention from the start, so step 0 is *not* the pretrained model.

    Attributes:
        tokens: prompt tokens p.
        deep: new prompts in every block, dropped after it; else they enter the first block and leave after the last.
        dropout: of the prompts, in training.
    """

    name, label = "vpt", "VPT"
    learning_rates = (1.25e-4, 5e-4, 2e-3, 8e-3)
    tunes = r"vit\.blocks\.\d+\.prompts"
    starts_as_pretrained = False

    tokens: int = option(100, other=3, least=1)
    deep: bool = option(True, other=False, choices=(True, False))
    dropout: float = option(0.1, other=0.5, least=0.0, below=1.0)

    def inject(self, vit: VisionTransformer) -> None:
        weight, last = vit.patch_embed.proj.weight, len(vit.blocks) - 1
        # The authors' start: uniform, with the variance of Xavier for a patch embedding.
        bound = math.sqrt(6 / (3 * math.prod(vit.patch_embed.patch_size) + vit.embed_dim))
        for i in range(len(vit.blocks)):
            prompts = None
            if self.deep or i == 0:
                prompts = nn.Parameter(torch.empty(1, self.tokens, vit.embed_dim).uniform_(-bound, bound).to(weight))
            drop = self.tokens if self.deep or i == last else 0
            if getattr(vit, "rope", None) is not None:  # prompts have no place, so none turns them
                vit.blocks[i].attn.num_prefix_tokens += self.tokens
            vit.blocks[i] = PromptedBlock(vit.blocks[i], prompts, drop, vit.num_prefix_tokens, self.dropout)
