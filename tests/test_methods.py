"""Every competing method against a slow, readable reference written from its formula."""

import math

import pytest
import torch
from helpers import SENTINEL2, adapted, images, randomise, tiny_vit
from torch.nn import functional as F

import peftlib as pl
from peftlib.methods.earth_adapter import split_frequencies
from peftlib.methods.slr import SLRLinear

RGB = ("B04", "B03", "B02")


def test_slr_is_its_formula():
    """y = s_out * (W (s_in * x) + b + U D (s_in * x)), one entry at a time."""
    layer = randomise(SLRLinear(torch.nn.Linear(5, 4), rank=2, scalers=True)).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    W, b, U, D = layer.linear.weight, layer.linear.bias, layer.U.weight, layer.D.weight
    with torch.no_grad():
        for row, got in zip(x, layer(x), strict=True):
            s = [row[i] * layer.s_in[i] for i in range(5)]
            low = [sum(D[r, i] * s[i] for i in range(5)) for r in range(2)]
            for o in range(4):
                y = sum(W[o, i] * s[i] for i in range(5)) + b[o] + sum(U[o, r] * low[r] for r in range(2))
                assert float(got[o]) == pytest.approx(float(layer.s_out[o] * y), rel=1e-10)


@pytest.mark.parametrize("positions", [("attention",), ("mlp",), ("attention", "mlp")])
@pytest.mark.parametrize("activation", ["gelu", "relu", "tanh"])
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
    z, _ = model.embed(x)
    expected = z
    for i, block in enumerate(model.vit.blocks):
        if deep or i == 0:
            prompts = block.prompts.expand(2, 3, 32)
            expected = torch.cat([expected[:, :2], prompts, expected[:, 2:]], dim=1)
        expected = block.block(expected)
        if deep or i == 2:
            expected = torch.cat([expected[:, :2], expected[:, 5:]], dim=1)
    got = model(x)
    assert got.shape == (2, 18, 32)
    torch.testing.assert_close(got, model.vit.norm(expected))


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


def test_norm_tuning_and_bitfit_count_as_their_rules():
    vit = tiny_vit(num_classes=4, global_pool="token")
    for method, rule in ((pl.NormTuning(), "norm"), (pl.BitFit(), "bias")):
        expected = sum(
            p.numel()
            for name, p in vit.named_parameters()
            if (rule in name if rule == "norm" else name.endswith(rule)) and not name.startswith("head.")
        )
        assert pl.count_parameters(pl.adapt(vit, method, SENTINEL2))["tuned"] == expected


@pytest.mark.parametrize(
    ("method", "published"),
    [("norm_tuning", "0.03"), ("bitfit", "0.09"), ("lora", "2.1"), ("slr", "2.2"), ("deflect", "0.2")],
)
def test_the_published_share_on_scalemae_large(method, published):
    with torch.device("meta"):
        vit = pl.load_backbone("scalemae_large", weights="random")
    bands = SENTINEL2 if method == "deflect" else RGB
    percent = pl.count_parameters(pl.adapt(vit, pl.METHODS[method](), bands))["percent"]
    digits = len(published.split(".")[1])
    assert f"{percent:.{digits}f}" == published
