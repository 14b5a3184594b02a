"""Decoders: any grid, each map in its place, tokens of several blocks."""

import sys

import pytest
import torch
from helpers import SAVANNA, adapted, images, tiny_vit
from torch import nn

import peftlib as pl
from peftlib.training.decoders import DECODERS, LinearDecoder, PyramidDecoder, build_decoder, evenly_spaced

every_decoder = pytest.mark.parametrize("name", DECODERS)
pyramids = pytest.mark.parametrize("name", ["unet", "upernet"])


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


@pyramids
def test_every_block_that_is_read_counts(name):
    head = made(name).eval()
    tokens = tokens_for(head, (4, 4))
    logits = head(tokens)
    for i in range(4):
        other = [t + 0.5 * torch.randn_like(t) if i == j else t for j, t in enumerate(tokens)]
        assert not torch.allclose(head(other), logits, atol=1e-3)


@pyramids
def test_every_parameter_learns(name):
    head = made(name).train()
    head(tokens_for(head, (4, 4))).square().mean().backward()
    assert [n for n, p in head.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


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


@pyramids
def test_a_decoder_learns_a_pattern_finer_than_patches(name):
    head = made(name, classes=2).train()
    tokens = tokens_for(head, (4, 4), batch=1)
    target = (torch.arange(32) // 4 % 2).expand(1, 32, 32)  # stripes of 4 px, patches of 8
    optimiser = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for _ in range(40):
        optimiser.zero_grad()
        nn.functional.cross_entropy(head(tokens), target).backward()
        optimiser.step()
    assert (head(tokens).argmax(1) == target).float().mean() > 0.95


def test_the_maps_of_the_pyramid():
    head = made("unet", (24, 40))
    maps = head.pyramid(tokens_for(head, (3, 5)))
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 12, 20), (16, 6, 10), (32, 3, 5), (32, 2, 3)]
    assert tuple(m.shape[1] for m in maps) == head.pyramid.channels


def test_blocks_are_evenly_spaced_and_end_with_the_last():
    assert evenly_spaced(12) == (2, 5, 8, 11) and evenly_spaced(24) == (5, 11, 17, 23)
    assert evenly_spaced(3) == (0, 1, 2, 2) and evenly_spaced(1) == (0, 0, 0, 0)
    assert made("unet").blocks == (0, 1, 2, 2)


def test_names():
    kinds = {"linear": LinearDecoder, "unet": PyramidDecoder, "upernet": PyramidDecoder}
    assert tuple(kinds) == DECODERS and all(type(made(name)) is kind for name, kind in kinds.items())
    assert [type(made(name).decoder).__name__ for name in DECODERS[1:]] == ["UnetDecoder", "UPerNetDecoder"]
    with pytest.raises(ValueError, match=r"'fcn'; choose from linear, unet, upernet"):
        made("fcn")


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    for module in [m for m in sys.modules if m.startswith("segmentation_models_pytorch")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    made("linear")
    with pytest.raises(ImportError, match=r"pip install 'peftlib\[geo\]'"):
        made("unet")


# --- tokens of several blocks ---


def test_intermediate_tokens_are_timms():
    vit = tiny_vit()
    model = adapted(pl.Frozen(), SAVANNA, vit=vit)
    x = images(SAVANNA)
    expected = vit.forward_intermediates(
        model.normalize(x),
        indices=[0, 2],
        norm=True,
        return_prefix_tokens=True,
        output_fmt="NLC",
        intermediates_only=True,
    )
    for found, (patches, prefix) in zip(model.intermediate_tokens(x, (0, 2)), expected, strict=True):
        torch.testing.assert_close(found, torch.cat([prefix, patches], dim=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", pl.METHODS)
def test_the_last_block_gives_what_the_model_gives(name):
    model = adapted(pl.METHODS[name](), SAVANNA)
    x = images(SAVANNA)
    first, last, again = model.intermediate_tokens(x, (0, 2, 2))
    assert torch.equal(last, model(x)) and torch.equal(last, again)
    assert first.shape == last.shape and not torch.allclose(first, last, atol=1e-2)


def test_prompts_of_shallow_vpt_stay_out_of_intermediate_tokens():
    model = adapted(pl.VPT(tokens=7, deep=False), SAVANNA)
    x = images(SAVANNA)
    z, _ = model.embed(x)
    for block, found in zip(model.vit.blocks, model.intermediate_tokens(x, (0, 1, 2)), strict=True):
        z = block(z)
        keep = list(range(2)) + list(range(z.shape[1] - 16, z.shape[1]))
        assert z.shape[1] in (2 + 7 + 16, 2 + 16)
        torch.testing.assert_close(found, model.vit.norm(z)[:, keep])


def test_blocks_after_the_last_one_asked_for_are_not_run():
    model = adapted(pl.Frozen(), SAVANNA)
    model.vit.blocks[2].forward = None
    assert len(model.intermediate_tokens(images(SAVANNA), [1, 0])) == 2


@pytest.mark.parametrize("blocks", [(), (3,), (-1,), (0, 5)])
def test_unknown_blocks_are_refused(blocks):
    with pytest.raises(ValueError, match=r"this ViT has blocks 0 to 2"):
        adapted(pl.Frozen(), SAVANNA).intermediate_tokens(images(SAVANNA), blocks)
