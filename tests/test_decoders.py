"""Decoders: any grid, each map in its place, tokens of several blocks."""

import pytest
import torch
from helpers import SAVANNA, adapted, images
from torch import nn

import peftlib as pl
from peftlib.training.decoders import DECODERS, build_decoder, evenly_spaced

every_decoder = pytest.mark.parametrize("name", DECODERS)


def made(name: str, image_size=(32, 32), classes: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_decoder(name, adapted(pl.Frozen(), SAVANNA, image_size=image_size), classes)


def tokens_for(head: nn.Module, grid: tuple[int, int], batch: int = 2, prefix: int = 2, seed: int = 0):
    """Random tokens as the decoder reads them."""
    draw = torch.Generator().manual_seed(seed)
    sets = [torch.randn(batch, prefix + grid[0] * grid[1], 32, generator=draw) for _ in range(4)]
    return sets if head.blocks else sets[-1]


# --- the decoders ---


@every_decoder
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (8, 8), (56, 16)])
def test_logits_have_the_size_of_any_image(name, size):
    model = adapted(pl.Frozen(), SAVANNA, image_size=size)
    head = build_decoder(name, model, 3)
    x = images(SAVANNA, size=size)
    tokens = model(x) if head.blocks is None else model.intermediate_tokens(x, head.blocks)
    logits = head(tokens)
    assert logits.shape == (2, 3, *size) and logits.isfinite().all()


@every_decoder
def test_a_patch_speaks_for_its_place(name):
    """On a grid that is not square: where logits change when one patch changes follows that patch, down and across."""
    size, (down, across) = (40, 64), (5, 8)
    head = made(name, size).eval()
    before = tokens_for(head, (down, across), batch=1)
    after = [t.repeat(down * across, 1, 1) for t in (before if head.blocks else [before])]
    for t in after:
        t[range(down * across), range(2, 2 + down * across)] += 3  # another patch in each image
    change = (head(after if head.blocks else after[0]) - head(before)).detach().abs().sum(1)
    by_patch = change.unfold(1, 8, 8).unfold(2, 8, 8).mean((-2, -1)).flatten(1)
    place = torch.cartesian_prod(torch.arange(down), torch.arange(across)).float()
    centre = by_patch @ place / by_patch.sum(1, keepdim=True)
    follows = torch.corrcoef(torch.cat([place, centre], dim=1).T)[:2, 2:]
    assert follows.diag().min() > 0.6 and follows.fliplr().diag().abs().max() < 0.3


@every_decoder
def test_an_image_gets_the_same_alone_and_in_a_batch(name):
    """In training mode too: nothing is normalised over the batch."""
    head = made(name).train()
    tokens = tokens_for(head, (4, 4), batch=3)
    alone = [t[:1] for t in tokens] if head.blocks else tokens[:1]
    torch.testing.assert_close(head(alone), head(tokens)[:1], rtol=1e-4, atol=1e-5)


@every_decoder
def test_prefix_tokens_are_not_read(name):
    head = made(name).eval()
    one, other = tokens_for(head, (4, 4)), tokens_for(head, (4, 4))
    for t in other if head.blocks else [other]:
        t[:, :2] = 9
    assert torch.equal(head(one), head(other))


def test_blocks_are_evenly_spaced_and_end_with_the_last():
    assert evenly_spaced(12) == (2, 5, 8, 11) and evenly_spaced(24) == (5, 11, 17, 23)
    assert evenly_spaced(3) == (0, 1, 2, 2) and evenly_spaced(1) == (0, 0, 0, 0)
    assert made("unet").blocks == (0, 1, 2, 2)


# --- tokens of several blocks ---
