"""What cost figures show is what was timed and counted."""

import pandas as pd
import pytest
from matplotlib import pyplot as plt
from study_rows import tidy_rows

import peftlib as pl
from peftlib.model.costs import flops, growth
from peftlib.studies import cost_plots, tables
from peftlib.studies.bench import PEER, PLAIN

BANDS = ("B04", "B03", "B02", "B08", "B8A", "B11", "B12", "B05")


def timed(size: int = 98) -> pd.DataFrame:
    """Rows as ``bench`` gives them, of times that a test chooses."""
    names = [*pl.METHODS, PEER, PLAIN]
    rows = pd.DataFrame({"name": names, "ratio": [0.5 + 0.1 * i for i in range(len(names))]})
    rows["tuned"] = [0 if name in ("frozen", PLAIN) else 22_000_000 if name == "full" else 50_000 for name in names]
    facts = {"ratio_low": rows["ratio"] - 0.02, "ratio_high": rows["ratio"] + 0.03, "step_ms": 900 * rows["ratio"]}
    facts |= {"peak_mb": 500 + 10 * rows["ratio"], "images_per_s": 36 / rows["ratio"], "encoder": 22_000_000}
    facts |= {"step_gflops": 140 + 10 * rows["ratio"], "precision": "float32", "compiled": False, "checkpointed": False}
    return rows.assign(**facts, image_size=size, batch_size=32, repeats=5, device="cpu")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_bars_are_ratios_and_memory_fastest_first():
    figure = cost_plots.race_figure(pd.concat([timed(98), timed(224)]))
    assert len(figure.axes) == 4
    time, memory = figure.axes[:2]
    rows = timed().sort_values("step_ms")
    assert [bar.get_width() for bar in time.patches] == pytest.approx(list(rows["ratio"]))
    assert [bar.get_width() for bar in memory.patches] == pytest.approx(list(rows["peak_mb"]))
    assert [text.get_text() for text in time.get_yticklabels()][:2] == ["Frozen", "Full fine-tuning"]


def test_scores_stand_against_step_times():
    scores = tables.scores(tidy_rows(lambda run: 0.5 + 0.01 * run.seed))
    figure = cost_plots.price_figure(timed(), scores)
    assert len(figure.axes) == 6
    for ax, cost in zip(figure.axes, cost_plots.COSTS, strict=False):  # the upper row
        points = {container.get_label(): container.lines[0].get_xydata()[0] for container in ax.containers}
        assert set(points) == {tables.label(name) for name in pl.METHODS}
        assert points["LoRA"] == pytest.approx([timed().set_index("name").loc["lora", cost], 51])
    shares = [line.get_ydata()[0] for line in figure.axes[3].lines]
    assert max(shares) == pytest.approx(100) and min(shares) == 0


def test_options_are_compared_with_the_same_method_and_size():
    faster, leaner = (timed().query("name in ['lora', 'deflect']").copy() for _ in range(2))
    faster["step_ms"], faster["precision"] = faster["step_ms"] / 2, "bfloat16"
    leaner["peak_mb"], leaner["checkpointed"] = leaner["peak_mb"] / 4, True
    table = cost_plots.options(pd.concat([timed(98), timed(224), faster, leaner]))
    assert set(table.index) == {"lora", "deflect"} and table["compiled"].isna().all(axis=None)
    assert (table["bfloat16"].round(6) == [0.5, 1]).all(axis=None)
    assert (table["checkpointed"].round(6) == [1, 0.25]).all(axis=None)


def test_growth_is_counted(vit):
    counted = growth(vit, BANDS)
    assert set(counted["method"]) == {"full", "lora", "deflect"} and (counted["step_gflops"] > 0).all()
    sides = counted[(counted["knob"] == "image side, pixels") & (counted["method"] == "deflect")]
    model = pl.adapt(vit, pl.Deflect(), BANDS, image_size=int(sides["value"].iloc[0]))
    assert sides["step_gflops"].iloc[0] == pytest.approx(flops(model)[1] / 1e9)
    assert sides["step_gflops"].is_monotonic_increasing
    ranks = counted[(counted["knob"] == "rank") & (counted["method"] == "lora")]
    assert ranks["step_gflops"].is_monotonic_increasing and len(ranks) == 4
    figure = cost_plots.growth_figure(counted)
    assert [ax.get_xlabel() for ax in figure.axes] == list(counted["knob"].unique())


def test_a_hundred_tasks_keep_one_backbone_unless_all_of_it_is_tuned():
    table = cost_plots.fleet(timed(), images=1000, epochs=20)
    backbone = 22_000_000 * 4 / 1e9
    assert table.loc["full", "disk_gb"] == pytest.approx(100 * backbone)
    assert table.loc["deflect", "disk_gb"] == pytest.approx(backbone + 100 * 50_000 * 4 / 1e9)
    rate = timed().set_index("name").loc["deflect", "images_per_s"]
    assert table.loc["deflect", "hours"] == pytest.approx(100 * 1000 * 20 / rate / 3600)
    assert len(cost_plots.fleet_figure(table).axes) == 2
