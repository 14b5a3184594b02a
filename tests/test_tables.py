"""Scores, means, ranks and tables from rows with known answers."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from study_rows import TUNED, plausible, row_of, study_runs, tidy_rows

from peftlib.experiments import statistics as scoring
from peftlib.experiments.results import read_table, tidy, write_table
from peftlib.experiments.statistics import ALL_BANDS, RGB, START, VARIANT
from peftlib.methods import METHODS
from peftlib.studies import tables
from peftlib.studies.comparison import LAYERS

FEW = ("frozen", "lora", "deflect")
LEVEL = {"frozen": 0.3, "lora": 0.6, "deflect": 0.5}


def steps(run):
    """A level for each method, 10 points more on marida, 0, 2 or 4 points more with the seed."""
    return LEVEL[run.method.name] + 0.1 * (run.dataset == "marida") + 0.02 * run.seed


@pytest.fixture(scope="module")
def rows():
    return tidy_rows(plausible, shuffle=1)


@pytest.fixture(scope="module")
def few():
    """Three methods, two data sets, three seeds, nothing beside."""
    return tables.scores(tidy_rows(steps, methods=FEW, extras=()))


def cell(scores, method, column, what="mean"):
    table = scoring.summary(scoring.compared(scores)).set_index(["method", "column"])
    return table.loc[(method, column), what]


def test_scores_are_the_headline_on_the_test_part_in_percent(rows):
    found = tables.scores(rows)
    assert len(found) == rows.loc[rows["split"] == "test", "key"].nunique() == found["key"].nunique()
    lines = rows[(rows["split"] == "test") & rows["headline"]].set_index("key")["value"]
    assert (found.set_index("key")["percent"] - 100 * lines).abs().max() < 1e-9
    assert set(found["metric"]) == {"macro_f1", "miou"} and set(found["task"]) == {"classification", "segmentation"}


def test_every_run_of_a_study_has_its_kind(rows):
    found = tables.scores(rows)
    kinds = found.groupby(["method", "kind"]).size().unstack(fill_value=0)
    assert (kinds[ALL_BANDS] == 6).all() and (kinds[START] == 4).all()  # 2 data sets x 3 seeds; starts 1 and 2
    assert kinds.loc["deflect", RGB] == 0 and (kinds[RGB].drop("deflect") == 6).all()
    # ablation 2, ranks 2, layers 3 beside the compared run; LoRA's ranks 2
    assert kinds[VARIANT].to_dict() == dict.fromkeys(METHODS, 0) | {"deflect": 42, "lora": 12}


def test_searches_and_failures_are_no_scores():
    runs = study_runs(methods=FEW, extras=())
    searched = [row_of(replace(run, stage="search"), 0.9) for run in runs]
    failed = [row_of(run, None, "RuntimeError: too large") for run in runs[:1]]
    done = [row_of(run, 0.5) for run in runs[1:]]
    found = tables.scores(tidy(searched + failed + done))
    assert len(found) == len(runs) - 1 and (found["percent"] == 50).all()


def test_two_runs_in_one_place_are_an_error():
    (run, *others) = study_runs(methods=FEW, extras=())
    twice = tidy(row_of(r, 0.5) for r in (run, replace(run, lr=0.123), *others))
    with pytest.raises(ValueError, match=rf"2 final runs of {run.method.name}, all bands, on eurosat with seed 0"):
        tables.scores(twice)


def test_means_and_deviations(few):
    assert cell(few, "lora", "eurosat") == pytest.approx(62) and cell(few, "lora", "eurosat", "std") == pytest.approx(2)
    assert cell(few, "lora", "marida") == pytest.approx(72)
    assert cell(few, "lora", "average") == pytest.approx(67) and cell(few, "lora", "average", "std") == pytest.approx(2)
    assert cell(few, "lora", "average", "seeds") == 3 and cell(few, "lora", "average", "tuned") == TUNED["lora"]


def test_the_deviation_of_an_average_is_that_of_averages_over_seeds():
    """Data sets that move against each other with the seed cancel."""
    rows = tidy_rows(lambda run: 0.5 + 0.02 * run.seed * (1 if run.dataset == "marida" else -1), methods=FEW, extras=())
    found = tables.scores(rows)
    assert cell(found, "lora", "marida", "std") == pytest.approx(2)
    assert cell(found, "lora", "average", "std") == pytest.approx(0, abs=1e-9)


def test_columns_average_tasks_and_all():
    rows = tidy_rows(plausible, methods=("lora",), extras=(), datasets=("marida", "eurosat", "spectral_scenes"))
    names = ["eurosat", "marida", "spectral_scenes", "average, segmentation", "average"]
    assert list(scoring.columns(tables.scores(rows))) == names
    alone = tidy_rows(plausible, methods=("lora",), extras=(), datasets=("eurosat",))
    assert list(scoring.columns(tables.scores(alone))) == ["eurosat"]


def test_one_seed_has_no_deviation():
    found = tables.scores(tidy_rows(steps, methods=FEW, extras=(), seeds=(0,)))
    text = tables.to_text(tables.score_table(found))
    assert text.loc["LoRA"].tolist() == ["10.02", "60.0*", "70.0*", "65.0*"]
    assert "±" not in tables.to_latex(tables.score_table(found))
    block = tables.scores(tidy_rows(steps, ("eurosat",), methods=FEW, extras=(), seeds=(0,)))
    assert scoring.mean_ranks(block)["mean"].tolist() == [1, 2, 3] and scoring.mean_ranks(block)["low"].isna().all()


def test_what_is_missing_is_a_dash_and_never_a_zero():
    rows = tidy_rows(lambda run: None if (run.method.name, run.dataset) == ("lora", "marida") else steps(run),
                     methods=FEW, extras=())  # fmt: skip
    table = tables.score_table(tables.scores(rows))
    text = tables.to_text(table)
    assert text.loc["LoRA"].tolist() == ["10.02", "62.0 ± 2.0*", tables.NONE, tables.NONE]
    assert " & -- & -- \\\\" in tables.to_latex(table)
    assert not ((table["method"] == "lora") & (table["column"] != "eurosat")).any()
    said = tables.notes(rows)
    assert "3 of 18 runs failed: 3 LoRA on marida, final (RuntimeError: too large (here.py:1))." in said
    assert "Fewer than 3 seeds: LoRA on marida, dinov2_small (0)." in said
    assert "Left out, for want of runs: LoRA." in tables.advice(tables.scores(rows))


def test_a_seed_that_is_missing_is_named_and_the_rest_is_used():
    lost = lambda run: None if (run.method.name, run.dataset, run.seed) == ("lora", "marida", 2) else steps(run)  # noqa: E731
    rows = tidy_rows(lost, methods=FEW, extras=())
    found = tables.scores(rows)
    assert cell(found, "lora", "marida", "seeds") == 2 and cell(found, "lora", "marida") == pytest.approx(71)
    assert cell(found, "lora", "average") == pytest.approx((62 + 71) / 2)
    assert cell(found, "lora", "average", "seeds") == 2
    assert any("LoRA on marida, dinov2_small (2)" in line for line in tables.notes(rows))
    assert len(scoring.blocks(found)) == 5  # the block of that seed has no LoRA


def test_a_score_that_is_no_number_is_told():
    rows = tidy_rows(lambda run: math.nan if run.seed == 2 and run.method.name == "lora" else steps(run),
                     methods=FEW, extras=())  # fmt: skip
    assert cell(tables.scores(rows), "lora", "eurosat", "seeds") == 2
    assert any("no finite score" in line and "2 of 18" in line for line in tables.notes(rows))


def test_the_best_is_bold_and_the_second_underlined(few):
    latex = tables.to_latex(tables.score_table(few), ["50% of a_b"])
    line = {text.split(" & ")[1]: text for text in latex.splitlines() if "±" not in text and " & " in text}
    assert line["LoRA"].count(r"\textbf{62.0 $\pm$ 2.0}") == 1 and line["LoRA"].count(r"\textbf") == 3
    assert line["DEFLECT"].count(r"\underline") == 3 and r"\textbf" not in line["Frozen"] + line["DEFLECT"]
    assert r"\underline" not in line["Frozen"] and r"50\% of a\_b" in latex and r"dinov2\_small" in latex
    assert latex.startswith(r"\begin{tabular}{llrrrr}") and latex.count(r"\midrule") == 1


def test_equal_as_shown_is_equally_good():
    values = {"frozen": 0.3, "lora": 0.60001, "deflect": 0.6}
    table = tables.score_table(tables.scores(tidy_rows(lambda run: values[run.method.name], methods=FEW, extras=())))
    marks = table[table["column"] == "eurosat"].set_index("method")["mark"]
    assert marks.to_dict() == {"frozen": "second", "lora": "best", "deflect": "best"}


def test_published_numbers_only_where_the_data_set_is_the_same(few):
    published = tables.published()
    pd.testing.assert_frame_equal(tables.score_table(few, published), tables.score_table(few))
    rows = tidy_rows(plausible, methods=FEW, extras=(), datasets=("so2sat", "mados", "burn_scars", "eurosat"))
    table = tables.score_table(tables.scores(rows), published)
    theirs = table[table["backbone"] == tables.PUBLISHED]
    assert set(theirs["column"]) == {"so2sat", "mados", "burn_scars", "average, segmentation"}  # eurosat is not theirs
    mine = theirs[(theirs["method"] == "full") & (theirs["column"] == "so2sat")].iloc[0]
    assert (mine["mean"], mine["std"], mine["tuned"], mine["mark"]) == (52.7, 0.1, 100, "")
    text = tables.to_text(table)
    assert text.loc[(tables.PUBLISHED, "DEFLECT"), "average, segmentation"].strip() == "63.8"  # no spread was published
    assert text.loc[(tables.PUBLISHED, "DEFLECT"), "eurosat"] == tables.NONE
    assert "Of burn_scars it gives IoU, not mIoU." in tables.notes(rows, published)[-1]


def test_models_have_blocks_of_their_own_and_one_mean():
    models = ("cross_scale_mae_large", "dino_mc_small", "scalemae_large")
    rows = tidy_rows(
        lambda run: steps(run) + 0.01 * models.index(run.backbone), methods=FEW, extras=(), backbones=models
    )
    found = tables.scores(rows)
    assert cell(found, "lora", "average") == pytest.approx(68) and len(scoring.blocks(found)) == 2 * 3 * 3
    table = tables.score_table(found)
    assert (table.groupby(["backbone", "column"])["mark"].apply(lambda m: (m == "best").sum()) == 1).all()
    assert tables.to_text(table).loc[("scalemae_large", "LoRA"), "average"] == "69.0 ± 2.0*"
    assert tables.to_latex(table).count(r"\midrule") == 3


def test_ranks_and_intervals_against_a_slow_reference(monkeypatch):
    monkeypatch.setattr(scoring, "DRAWS", 300)
    found = tables.scores(tidy_rows(plausible, extras=()))
    main = scoring.compared(found)
    blocks, ranks = {}, {}
    for row in main.itertuples():
        blocks.setdefault((row.dataset, row.backbone, row.seed), {})[row.method] = row.percent
    for block, values in blocks.items():
        ranks[block] = {name: 1 + sum(other > value for other in values.values()) for name, value in values.items()}
    drawn = np.random.default_rng(0).integers(len(blocks), size=(300, len(blocks)))
    table = scoring.mean_ranks(found)
    order = sorted(blocks)
    for method in METHODS:
        means = sorted(sum(ranks[order[i]][method] for i in draw) / len(draw) for draw in drawn)
        assert table.loc[method, "mean"] == pytest.approx(np.mean([r[method] for r in ranks.values()]))
        assert table.loc[method, "low"] == pytest.approx(np.percentile(means, 2.5))
        assert table.loc[method, "high"] == pytest.approx(np.percentile(means, 97.5))
    assert table["mean"].is_monotonic_increasing and (table["blocks"] == 6).all()
    to = scoring.differences(found, "lora")
    assert "lora" not in to.index
    pairs = [values["deflect"] - values["lora"] for values in blocks.values()]
    assert to.loc["deflect", "mean"] == pytest.approx(np.mean(pairs))
    assert min(pairs) <= to.loc["deflect", "low"] <= to.loc["deflect", "high"] <= max(pairs)


def test_differences_to_a_method_that_is_not_there_are_none(few):
    assert scoring.differences(few, "slr").empty
    assert scoring.differences(few, "lora").loc["deflect", ["mean", "low", "high"]].tolist() == pytest.approx([-10] * 3)


def test_the_order_of_rows_does_not_matter(rows):
    def all_of(rows):
        found = tables.scores(rows)
        table = tables.score_table(found, tables.published())
        ranks = scoring.mean_ranks(found).to_csv() + scoring.differences(found, "deflect").to_csv()
        return [tables.to_latex(table, tables.notes(rows)), tables.to_csv(table), tables.advice(found), ranks]

    for seed in (2, 3):
        assert all_of(rows.sample(frac=1, random_state=seed)) == all_of(rows)


def test_rows_from_a_file_give_the_same_table(rows, tmp_path):
    failed = tidy([row_of(study_runs()[0], None, "ValueError: no")]).assign(key="0")
    both = pd.concat([rows, failed], ignore_index=True)
    read = read_table(write_table(both, tmp_path / "rows.csv"))
    one, other = (tables.score_table(tables.scores(table)) for table in (both, read))
    pd.testing.assert_frame_equal(tables.to_text(one), tables.to_text(other))
    assert tables.notes(both) == tables.notes(read) and "1 of " in "".join(tables.notes(read))


def test_csv_and_files(few, tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTLIB_FIGURES", str(tmp_path))
    table = tables.score_table(few)
    paths = tables.save_table(table, ["a note"], "05_table", "quick")
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == ["quick/05_table.tex", "quick/05_table.csv"]
    assert sorted(p.name for p in (tmp_path / "quick").iterdir()) == ["05_table.csv", "05_table.tex"]
    assert paths[0].read_text() == tables.to_latex(table, ["a note"])
    read = pd.read_csv(paths[1])
    line = read[(read["method"] == "lora") & (read["column"] == "average")].iloc[0]
    assert (line["model"], line["mean"], line["std"], line["seeds"], line["mark"]) == ("dinov2_small", 67, 2, 3, "best")


def test_advice_names_the_best_and_the_smallest_that_is_as_good():
    def said(level, **study):
        rows = tidy_rows(lambda run: level[run.method.name] + 0.02 * run.seed, methods=FEW, extras=(), **study)
        return tables.advice(tables.scores(rows))

    near = said({"frozen": 0.3, "lora": 0.6, "deflect": 0.59})
    assert "Highest mean over 2 data sets: LoRA (62.0%, tunes 10.02% of the encoder)." in near
    assert "within one standard deviation (2.0 points) of it: DEFLECT (61.0%, tunes 0.62% of the encoder)" in near
    assert "Best by data set: eurosat LoRA, marida LoRA." in near
    assert "Nothing smaller comes within" in said({"frozen": 0.3, "lora": 0.6, "deflect": 0.57})
    assert "Nothing smaller comes within" in said({"frozen": 0.6, "lora": 0.6, "deflect": 0.57})  # frozen is the pick
    assert "One seed" in said(LEVEL, seeds=(0,))
    alone = said(LEVEL, datasets=("eurosat",))
    assert alone.startswith("Highest mean over eurosat: LoRA") and "by data set" not in alone


def test_advice_names_those_that_ranks_do_not_order():
    """LoRA and DEFLECT take turns, the frozen model is always last."""
    turns = {"frozen": (0.3,) * 3, "lora": (0.6, 0.5, 0.6), "deflect": (0.5, 0.6, 0.5)}
    rows = tidy_rows(lambda run: turns[run.method.name][run.seed], methods=FEW, extras=())
    assert "overlap the first, 2 of 3, which these runs do not order: LoRA, DEFLECT." in tables.advice(
        tables.scores(rows)
    )
    assert "overlap" not in tables.advice(tables.scores(tidy_rows(steps, methods=FEW, extras=())))


def test_no_rows_at_all():
    rows = tidy_rows(plausible, methods=FEW, extras=()).iloc[:0]
    found = tables.scores(rows)
    assert found.empty and scoring.mean_ranks(found).empty and "no advice" in tables.advice(found)
    assert tables.to_text(tables.score_table(found)).empty and "No method" in tables.notes(rows)[0]


def test_ranks_and_layers_are_found(rows):
    found = tables.scores(rows)
    assert sorted(scoring.varied(found, "lora", "rank", "alpha")["rank"].unique()) == [2, 6, 16]
    assert sorted(scoring.varied(found, "deflect", "rank")["rank"].unique()) == [2, 6, 16]
    assert set(scoring.varied(found, "deflect", "layers")["layers"]) == {*LAYERS.values(), ()}
    assert scoring.varied(found, "deflect", "rank").groupby(["rank", "dataset"]).size().eq(3).all()


def test_every_method_has_a_name():
    assert list(tables.LABELS) == list(METHODS) and len(set(tables.LABELS.values())) == len(METHODS)
    assert tables.label("hf_peft") == "hf_peft"
