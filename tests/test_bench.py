"""The benchmark: what it times is what it says, and its measures measure."""

import math

import pandas as pd
import pytest
import torch

import peftlib as pl
from peftlib.__main__ import main
from peftlib.files import root
from peftlib.studies.bench import BANDS, PEER, PLAIN, bench, highest_allocation

CPU = torch.device("cpu")
CELLS = ("frozen", "lora", "deflect", "emb+lora", "full")


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return bench("test_vit", 32, 2, CELLS, repeats=1, device="cpu")


def test_every_contestant_has_a_row(rows):
    both = [(name, precision) for precision in ("float32", "autocast") for name in (PEER, PLAIN)]
    ours = ("RGB × Frozen", "RGB × LoRA", "DEFLECT", "EMB × LoRA")
    both += [(name, precision) for name in ours for precision in ("float32", "bf16-frozen")]
    both += [("RGB × Full fine-tuning", precision) for precision in ("float32", "autocast")]
    assert list(zip(rows["name"], rows["precision"], strict=True)) == both
    assert list(rows["input"]) == [""] * 4 + ["rgb"] * 4 + ["emb"] * 4 + ["rgb"] * 2
    measured = rows.drop(columns=["name", "input", "method", "backbone", "precision", "device", "torch"]).astype(float)
    assert measured.map(math.isfinite).all(axis=None)
    assert (rows[["forward_ms", "step_ms", "peak_mb"]] > 0).all(axis=None)
    peer = rows[rows["name"] == PEER]
    assert (peer[["ratio", "ratio_low", "ratio_high"]] == 1).all(axis=None)
    assert peer["to_float32"].iloc[0] == 1 != peer["to_float32"].iloc[1]


def test_the_peer_tunes_what_our_lora_does(rows):
    assert (rows.groupby("name")["tuned"].nunique() == 1).all()
    tuned = rows.groupby("name")["tuned"].first()
    assert tuned[PEER] == tuned["RGB × LoRA"] > 0 and tuned["RGB × Frozen"] == tuned[PLAIN] == 0
    assert tuned["EMB × LoRA"] > tuned["RGB × LoRA"]


def test_arithmetic_is_that_of_the_cost_table(rows):
    table = pl.cost_table(pl.load_backbone("test_vit", "random", 32), BANDS, methods=[pl.Frozen()])
    counted = rows.set_index("name").loc["RGB × Frozen", "step_gflops"].to_numpy()
    assert counted == pytest.approx(2 * table["step_gflops"].iloc[0], rel=0.02)


def test_the_highest_allocation_is_found():
    def act():
        a = torch.ones(1000, 1000)  # 4 MB
        b = a + 1
        del a, b
        torch.ones(10)

    assert highest_allocation(act, CPU) == pytest.approx(8e6, rel=0.01)


@pytest.mark.parametrize("options", [{"methods": ("adapter",)}, {"methods": ("b04+lora",)}, {"repeats": 0}])
def test_wrong_options_are_named(options):
    with pytest.raises(ValueError, match=r"adapter.*frozen|input 'b04'.*inflated|repeats=0"):
        bench("test_vit", 32, 2, **options)


def test_the_command_prints_a_table_and_writes_rows(tmp_path, capsys):
    command = "bench --backbone test_vit --size 32 --batch 2 --methods deflect --repeats 1 --device cpu"
    assert main([*command.split(), "--out", str(tmp_path / "bench.csv")]) == 0
    assert f"| {PEER} |" in capsys.readouterr().out
    assert list(pd.read_csv(tmp_path / "bench.csv")["name"]) == [PEER, PLAIN, PEER, PLAIN, "DEFLECT", "DEFLECT"]
    assert main(["bench", "--size", "32"]) == 1 and "one batch size for each" in capsys.readouterr().err
    assert main(["bench", "--methods", "adapter"]) == 1 and "unknown method" in capsys.readouterr().err


def test_committed_rows_are_those_of_the_benchmark(rows):
    committed = pd.read_csv(root() / "data" / "results" / "bench.csv")
    assert set(committed.columns) == set(rows.columns) and set(committed["precision"]) == set(rows["precision"])
    assert {PEER, PLAIN, "RGB × LoRA", "DEFLECT"} <= set(committed["name"])
