"""Every competing method against a slow, readable reference written from its formula."""

import math

import pytest
import torch
from helpers import COLOURS, SENTINEL2, adapted, images, randomise
from torch.nn import functional as F

import peftlib as pl
from peftlib.methods.earth_adapter import split_frequencies

LINEARS = [f"vit.blocks.{i}.{name}" for i in range(3) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
D = 32


def test_lora_and_slr_are_their_formulas(x):
    """W + (alpha / r) B A, and diag(s_out) (W + U D) diag(s_in), in every linear layer of plain blocks."""
    for method in (pl.LoRA(rank=4, alpha=6.0), pl.SLR(rank=4)):
        model, plain = randomise(adapted(method)), adapted(pl.Frozen())
        with torch.no_grad():
            for path in LINEARS:
                layer, linear = model.get_submodule(path), plain.get_submodule(path)
                if method.name == "lora":
                    linear.weight.add_(6.0 / 4 * layer.B.weight @ layer.A.weight)
                else:
                    update = linear.weight + layer.U.weight @ layer.D.weight
                    linear.weight.copy_(torch.diag(layer.s_out) @ update @ torch.diag(layer.s_in))
                    linear.bias.mul_(layer.s_out)
            torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-4)


def test_apla_trains_some_rows_of_each_projection_and_the_others_stay_bit_equal(vit, x):
    """8 of 32 outputs, drawn for each block: against plain blocks with those rows put in."""
    model, plain = randomise(adapted(pl.APLA(share=0.25), vit=vit)), adapted(pl.Frozen(), vit=vit)
    assert pl.count_parameters(model)["tuned"] == 3 * 8 * (D + 1)
    assert len({tuple(sorted(set(block.attn.proj.rows.tolist()))) for block in model.vit.blocks}) == 3
    for blocks in zip(model.vit.blocks, plain.vit.blocks, pl.merge(model).blocks, strict=True):
        layer, own, merged = (block.attn.proj for block in blocks)
        others = [row for row in range(D) if row not in layer.rows]
        assert torch.equal(merged.weight[others], own.weight[others])
        assert torch.equal(merged.bias[others], own.bias[others])
        with torch.no_grad():
            own.weight[layer.rows], own.bias[layer.rows] = layer.weight, layer.bias
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("positions", "activation"), [(("attention",), "gelu"), (("mlp",), "relu"), (("attention", "mlp"), "tanh")]
)
def test_houlsby_is_a_bottleneck_at_the_end_of_a_branch(positions, activation):
    model = randomise(adapted(pl.Houlsby(width=5, activation=activation, positions=positions)))
    block, z = model.vit.blocks[1], torch.randn(2, 7, 32)
    f = {"gelu": F.gelu, "relu": F.relu, "tanh": torch.tanh}[activation]

    def adapter(name, h, branch):
        scale = getattr(block, name)
        if branch not in positions:
            return h * scale.gamma
        h, a = h * scale[0].gamma, scale[1]
        return h + f(h @ a.down.weight.T + a.down.bias) @ a.up.weight.T + a.up.bias

    expected = z + adapter("ls1", block.attn(block.norm1(z)), "attention")
    expected = expected + adapter("ls2", block.mlp(block.norm2(expected)), "mlp")
    torch.testing.assert_close(block(z), expected)


@pytest.mark.parametrize("deep", [True, False])
def test_prompts_stand_behind_the_prefix_and_leave_again(deep):
    model, x = adapted(pl.VPT(tokens=3, deep=deep)), images()
    expected, _ = model.embed(x)
    for i, block in enumerate(model.vit.blocks):
        if deep or i == 0:
            expected = torch.cat([expected[:, :2], block.prompts.expand(2, 3, 32), expected[:, 2:]], dim=1)
        expected = block.block(expected)
        if deep or i == 2:
            expected = torch.cat([expected[:, :2], expected[:, 5:]], dim=1)
    assert expected.shape == (2, 18, 32)
    torch.testing.assert_close(model(x), model.vit.norm(expected))


def test_prompts_start_uniform_with_the_authors_bound():
    bound = math.sqrt(6 / (3 * 8 * 8 + 32))
    prompts = torch.cat([b.prompts.flatten() for b in adapted(pl.VPT()).vit.blocks])
    assert prompts.abs().max() <= bound and prompts.abs().max() > 0.98 * bound
    assert float(prompts.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("grid", [(4, 4), (5, 3), (1, 6)])
def test_low_pass_keeps_slow_waves(grid):
    """A plane wave passes whole or not at all, by its distance from frequency zero on each axis."""
    rows, columns = torch.meshgrid(*(torch.arange(float(n)) for n in grid), indexing="ij")
    for u in range(grid[0]):
        for v in range(grid[1]):
            wave = torch.cos(2 * math.pi * (u * rows / grid[0] + v * columns / grid[1])).reshape(1, -1, 1)
            low, high = split_frequencies(wave, grid, cutoff=0.3)
            distance = [2 * min(k, n - k) / n for k, n in zip((u, v), grid, strict=True)]  # share of Nyquist
            passes = all(d <= 0.3 for d in distance)
            torch.testing.assert_close(low, wave if passes else torch.zeros_like(wave), rtol=0, atol=1e-5)
            torch.testing.assert_close(low + high, wave)


def test_earth_adapter_adds_routed_bottlenecks_to_patch_tokens():
    model = randomise(adapted(pl.EarthAdapter(width=5, fourier_layers=(0,))))
    z = torch.randn(2, 18, 32)
    for block, views in ((model.vit.blocks[0], 3), (model.vit.blocks[1], 1)):
        out = block.block(z)
        x = out[:, 2:]
        low, high = split_frequencies(x, (4, 4), 0.3)
        weights = torch.ones(2, 16, 1)
        if views == 3:
            unit = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            logits = unit @ block.router.weight.T + block.router.bias
            weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
        delta = torch.zeros_like(x)
        for e, view in enumerate((x, low, high)[:views]):
            first, _, last = block.experts[e]
            hidden = torch.relu(view @ first.weight.T + first.bias)
            delta += weights[..., e : e + 1] * (hidden @ last.weight.T + last.bias)
        expected = torch.cat([out[:, :2], x + block.scale * delta], dim=1)
        torch.testing.assert_close(block(z), expected, rtol=1e-4, atol=1e-5)


def test_published_shares_on_scalemae_large():
    with torch.device("meta"):
        vit = pl.load_backbone("scalemae_large", weights="random")
    shares = {"norm_tuning": "0.03", "bitfit": "0.09", "lora": "2.1", "slr": "2.2", "deflect": "0.2"}
    for name, published in shares.items():
        bands = SENTINEL2 if name == "deflect" else COLOURS
        percent = pl.count_parameters(pl.adapt(vit, pl.METHODS[name](), bands))["percent"]
        assert f"{percent:.{len(published) - 2}f}" == published, name
