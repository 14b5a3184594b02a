"""The benchmark: what it times is what it says, and its measures measure."""

import json
import math

import pandas as pd
import pytest
import torch

import peftlib as pl
from peftlib.__main__ import main
from peftlib.studies.bench import PEER, PLAIN, bench, highest_allocation, markdown, product_rate, read_bench
from peftlib.studies.cost_plots import fleet, plain_rows

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return bench("test_vit", 32, 2, ("frozen", "lora", "deflect"), repeats=2, device="cpu", progress=False)


def test_every_contestant_has_a_row(rows):
    assert list(rows["name"]) == ["frozen", "lora", "deflect", PEER, PLAIN]
    measured = rows.drop(columns=["name", "backbone", "precision", "device", "torch"]).astype(float)
    assert measured.map(math.isfinite).all(axis=None) and (rows[["forward_ms", "step_ms", "peak_mb"]] > 0).all(
        axis=None
    )
    peer = rows.set_index("name").loc[PEER]
    assert (peer["ratio"], peer["ratio_low"], peer["ratio_high"]) == (1, 1, 1)


def test_the_peer_tunes_what_our_lora_does(rows):
    tuned = rows.set_index("name")["tuned"]
    assert tuned[PEER] == tuned["lora"] > 0 and tuned["frozen"] == tuned[PLAIN] == 0


def test_arithmetic_is_that_of_the_cost_table(rows):
    vit = pl.load_backbone("test_vit", "random", 32)
    bands = [name for name in pl.SENSORS["sentinel2"] if name != "B10"]
    table = pl.cost_table(vit, bands, methods=[pl.Frozen()])
    assert rows.set_index("name").loc["frozen", "step_gflops"] == pytest.approx(
        2 * table["step_gflops"].iloc[0], rel=0.02
    )


def test_the_highest_allocation_is_found():
    def act():
        a = torch.ones(1000, 1000)  # 4 MB
        b = a + 1
        del a, b
        torch.ones(10)

    assert highest_allocation(act, CPU) == pytest.approx(8e6, rel=0.01)


def test_less_is_kept_with_checkpointing():
    def peak(checkpointed):
        options = dict(repeats=1, device="cpu", checkpointed=checkpointed, progress=False)
        return bench("test_vit", 64, 8, ("lora",), **options).set_index("name").loc["lora", "peak_mb"]

    assert peak(True) < 0.9 * peak(False)


def test_a_rate_is_positive():
    assert product_rate(CPU, "float32", size=64) > 0


@pytest.mark.parametrize("options", [{"methods": ("adapter",)}, {"precision": "float16"}, {"repeats": 0}])
def test_wrong_options_are_named(options):
    with pytest.raises(ValueError, match=r"adapter.*frozen|float16|repeats=0"):
        bench("test_vit", 32, 2, **options)


def test_the_command_writes_json_and_a_table(tmp_path, capsys):
    command = "bench --backbone test_vit --size 32 --batch 2 --methods deflect --repeats 1 --device cpu"
    assert main([*command.split(), "--out", str(tmp_path / "made")]) == 0
    table = (tmp_path / "made" / "bench.md").read_text()
    assert table.strip() in capsys.readouterr().out and f"| {PEER} |" in table
    written = json.loads((tmp_path / "made" / "bench.json").read_text())
    assert [row["name"] for row in written] == ["deflect", PEER, PLAIN]
    assert main(["bench", "--methods", "adapter"]) == 1 and "choose from" in capsys.readouterr().err


def test_the_table_puts_the_fastest_first(rows):
    lines = markdown(rows).splitlines()[4:]
    order = rows.sort_values("step_ms")["name"]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == list(order)


def test_committed_rows_say_what_the_cost_notebook_says():
    rows = plain_rows(read_bench())
    small, large = (rows[rows["image_size"] == size].set_index("name") for size in (98, 224))
    share = small["step_ms"] / small.loc["full", "step_ms"]
    assert share[["lora", "deflect"]].round(2).to_dict() == {"lora": 0.76, "deflect": 0.97}
    assert round(large.loc["deflect", "step_ms"] / large.loc["full", "step_ms"], 2) == 1.07
    assert set(small.index[small["peak_mb"] > small.loc["full", "peak_mb"]]) == {"slr", "vpt"}
    others = small["peak_mb"].drop(["full", "slr", "vpt", "frozen", PLAIN])
    assert others.min() > 385 and others.max() < 575 and round(small.loc["full", "peak_mb"], -1) == 790
    kept = read_bench().query("checkpointed and name in ['lora', 'deflect']").set_index("name")
    assert (kept["peak_mb"] <= 180).all() and (kept["step_ms"] / small["step_ms"]).dropna().between(1.3, 1.4).all()
    assert fleet(small.reset_index())["disk_gb"].round(2).loc[["full", "deflect"]].tolist() == [8.89, 0.14]
