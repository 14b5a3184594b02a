"""What cost_table says is what a real model has: parameters, bytes on disk, arithmetic."""

import pandas as pd
import peft
import pytest
import torch
from helpers import SAVANNA, SENTINEL2, adapted, tiny_vit
from safetensors.torch import load_file

import peftlib as pl
from peftlib.model.adapted_vit import without_weights
from peftlib.model.adapter_file import adapter_bytes
from peftlib.model.costs import flops


@pytest.mark.parametrize("method", [pl.Frozen(), pl.Full(), pl.Deflect(), pl.HFPeft(peft.VeraConfig(r=4))], ids=str)
def test_bytes_are_those_of_the_tensors_in_the_file(method, tmp_path):
    model = adapted(method, SAVANNA, input=pl.EMB()).bfloat16()
    path = pl.save_adapter(model, tmp_path / "a.safetensors")
    stored = sum(t.nbytes for t in load_file(path).values())
    assert adapter_bytes(model) == adapter_bytes(without_weights(model)) == stored
    assert 0 < path.stat().st_size - stored < 20_000  # the header


def test_the_table_of_all_methods_and_of_pairs():
    table = pl.cost_table(tiny_vit(), SENTINEL2)
    assert list(table.index) == [f"{config.__name__}()" for config in pl.METHODS.values()]
    pairs = [(pl.LoRA(rank=4), pl.EMB(width=8)), (pl.Frozen(), pl.Inflated())]
    table = pd.concat([table, pl.cost_table(tiny_vit(), SENTINEL2, methods=pairs)])
    named = {f"{config.__name__}()": (config(), None) for config in pl.METHODS.values()}
    named |= {"LoRA(rank=4) on EMB(width=8)": pairs[0], "Frozen() on Inflated()": pairs[1]}
    assert list(table.index) == list(named)
    for name, (method, input) in named.items():
        counts = pl.count_parameters(adapted(method, input=input))
        assert all(table.loc[name, key] == pytest.approx(counts[key]) for key in counts if key != "encoder"), name


def test_flops_by_hand():
    """A product of (n, a) and (a, b) is 2 n a b; the backward of a frozen layer costs as much, of a tuned one twice."""
    n, d, patch = 18, 32, 8
    embed = 2 * 16 * (3 * patch * patch) * d
    linear = 2 * n * (3 * d * d + d * d + 4 * d * d + 4 * d * d)
    attention = 2 * (2 * n * n * d)
    forward = embed + 3 * (linear + attention)
    assert flops(adapted(pl.Frozen())) == (forward, forward)
    # Tuned everywhere: gradients of inputs and of weights; no gradient of the image.
    full = forward + embed + 3 * 2 * (linear + attention)
    assert flops(adapted(pl.Full(), ("B04", "B03", "B02"))) == (forward, full)
    # Only the last block's fc2: its update's thin products, and nothing before it.
    rank = 4
    thin = 2 * n * rank * (4 * d + d)
    lora = pl.LoRA(rank=rank, targets=("fc2",), layers=(2,))
    assert flops(adapted(lora)) == (forward + thin, forward + thin + thin + 2 * n * rank * d)


def test_counting_leaves_the_model_alone():
    vit = tiny_vit()
    model = adapted(pl.LoRA(), vit=vit)
    random = torch.get_rng_state()
    pl.cost_table(vit, SAVANNA, methods=[pl.LoRA(), pl.Deflect()])
    flops(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None and not p.is_meta for p in model.parameters())
