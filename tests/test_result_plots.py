"""The figures of results, on rows that are complete, few, or not there."""

import itertools

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from study_rows import TUNED, plausible, tidy_rows

from peftlib.experiments.statistics import choice
from peftlib.methods import METHODS
from peftlib.studies import result_plots, tables
from peftlib.studies.figure_parts import name_points, spread
from peftlib.studies.plots import METHOD_COLOURS, save_figure, use_style

FIGURES = ("choice", "datasets", "models", "bands", "stability", "sensitivity", "ablation", "ranks")
MODELS = ("dino_mc_small", "scalemae_large")


@pytest.fixture(scope="module")
def full():
    return tables.scores(tidy_rows(plausible))


@pytest.fixture(autouse=True)
def _closed():
    use_style()
    yield
    plt.close("all")


def draw(name, scores):
    return getattr(result_plots, f"{name}_figure")(scores)


def words(figure):
    """All that is written in a figure."""
    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_visible())


@pytest.mark.parametrize("name", FIGURES)
def test_full_rows(name, full):
    figure = draw(name, full)
    text = words(figure)
    assert "Nothing to draw" not in text and "DEFLECT" in text and "nan" not in text.lower()
    assert "%" in text or "points" in text
    assert "deviation" in text or "bootstrap" in text  # what its bars are
    if name not in ("sensitivity", "ablation"):
        assert all(label in text for label in tables.LABELS.values())


@pytest.mark.parametrize("name", FIGURES)
def test_few_rows_and_none(name):
    few = tables.scores(tidy_rows(plausible, ("eurosat",), methods=("frozen", "lora"), seeds=(0,), extras=()))
    text = words(draw(name, few))
    assert ("Nothing to draw" in text) == (name in ("bands", "stability", "sensitivity", "ablation"))
    assert words(draw(name, few.iloc[:0])).startswith("Nothing to draw: ")


@pytest.mark.parametrize("name", ["choice", "models", "datasets", "ranks"])
def test_several_models(name):
    rows = tidy_rows(plausible, ("so2sat", "mados"), MODELS, ("frozen", "lora", "deflect"), extras=())
    text = words(draw(name, tables.scores(rows)))
    assert "Nothing to draw" not in text
    if name == "models":
        assert "mean over 2 models" in text and all(model in text for model in MODELS)


def test_one_model_is_named(full):
    assert "one model: dinov2_small" in words(draw("models", full))


def test_every_method_has_its_own_colour():
    assert set(METHOD_COLOURS) == set(METHODS)
    for one, other in itertools.combinations(METHOD_COLOURS.values(), 2):
        assert np.abs(np.subtract(to_rgb(one), to_rgb(other))).max() > 0.05


def points(ax):
    return {bar.get_label(): bar for bar in ax.containers if bar.get_label()}


def test_points_lie_at_their_share_and_frozen_left_of_a_break(full):
    ax = draw("choice", full).axes[0]
    place = {name: bar[0].get_xdata()[0] for name, bar in points(ax).items()}
    order = sorted(TUNED, key=TUNED.get)
    assert sorted(place, key=place.get) == [tables.label(name) for name in order]
    for name in order[1:]:
        assert place[tables.label(name)] == pytest.approx(np.log10(TUNED[name]), abs=0.15)
    ticks = dict(zip([tick.get_text() for tick in ax.get_xticklabels()], ax.get_xticks(), strict=True))
    assert place["Frozen"] == ticks["0"] < ticks["0.1"] < ticks["1"] and ax.get_xlim()[0] < ticks["0"]
    assert "//" in [text.get_text() for text in ax.texts]
    colours = {name: to_rgb(bar[0].get_color()) for name, bar in points(ax).items()}
    assert colours == {tables.label(name): to_rgb(METHOD_COLOURS[name]) for name in METHODS}


@pytest.mark.parametrize("name", ["choice", "datasets"])
def test_names_cover_nothing_and_are_not_cut(name, full):
    figure = draw(name, full)
    figure.canvas.draw()
    for ax in figure.axes:
        names = [text for text in ax.texts if text.get_text() in points(ax)]
        assert len(names) == len(METHODS)
        boxes = [text.get_window_extent() for text in names]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        marks = ax.transData.transform([bar[0].get_xydata()[0] for bar in points(ax).values()])
        assert not any(box.contains(*mark) for box in boxes for mark in marks)
        assert all(ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 for box in boxes)


def test_the_first_figure_says_what_to_take(full):
    figure = draw("choice", full)
    title = figure.axes[0].get_title(loc="left")
    best = choice(full).iloc[0]
    assert f"Highest mean: {tables.label(best['method'])} ({best['mean']:.1f}%)" in title
    bold = {text.get_text() for text in figure.axes[0].texts if text.get_weight() == "bold"}
    assert tables.label(best["method"]) in bold and len(bold) <= 2


def test_bars_are_deviations_over_seeds_and_need_two():
    def value(run):
        return 0.5 + 0.02 * run.seed

    for seeds, bars in (((0, 1, 2), True), ((0,), False)):
        found = tables.scores(tidy_rows(value, ("eurosat",), methods=("lora",), seeds=seeds, extras=()))
        figure = draw("choice", found)
        (bar,) = points(figure.axes[0]).values()
        assert bar.has_yerr == bars
        assert ("3 seeds" if bars else "One seed, so no error bars") in words(figure)
        if bars:
            ((_, low), (_, high)) = bar[2][0].get_segments()[0]
            assert (low, high) == pytest.approx((50, 54))


def test_what_is_missing_beside_is_said():
    found = tables.scores(tidy_rows(plausible, ("marida",), methods=("lora", "deflect"), extras=("ablation",)))
    text = words(draw("stability", found))
    assert "No runs in which the start alone varies" in text and "fold" not in text
    assert "Nothing to draw: there are no runs with other ranks or layers" in words(draw("sensitivity", found))
    ablation = words(draw("ablation", found))
    assert "LoRA, all bands" in ablation and "Frozen" not in ablation


def test_a_mark_of_one_panel_alone_is_in_the_key(full):
    """RGB on one of two data sets: it has no average, and the first panel no such line."""
    part = full[~((full["dataset"] == "marida") & (full["kind"] == "RGB"))]
    (key,) = draw("ablation", part).legends
    assert "Frozen, RGB" in [text.get_text() for text in key.get_texts()]


def test_the_order_of_rows_does_not_matter(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTLIB_FIGURES", str(tmp_path))
    made = []
    for shuffle in (None, 5):
        rows = tidy_rows(plausible, ("marida",), methods=("frozen", "lora", "deflect"), extras=(), shuffle=shuffle)
        figure = draw("choice", tables.scores(rows))
        made.append([path.read_bytes() for path in save_figure(figure, "choice", "quick")])
    assert made[0] == made[1]


def test_spread_moves_no_more_than_it_must():
    assert spread([3.0, 1.0, 2.0], 0.5).tolist() == [3, 1, 2]
    assert spread([1.0, 1.0, 5.0], 0.4) == pytest.approx([0.8, 1.2, 5])
    values = np.random.default_rng(0).normal(size=20)
    moved = spread(values, 0.3)
    assert (np.diff(np.sort(moved)) > 0.3 - 1e-9).all() and (np.argsort(moved) == np.argsort(values)).all()


def test_a_crowd_of_names_is_drawn_all_the_same():
    figure, ax = plt.subplots(figsize=(1, 1))
    for i in range(12):
        ax.errorbar(0, 0.001 * i, fmt="o", label=f"a long name {i}")
    name_points(figure)
    assert len(ax.texts) >= 12
