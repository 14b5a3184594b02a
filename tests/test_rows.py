"""Result rows and their tables: whole or missing, tidy, and as they were after a round through a file."""

import json
import warnings
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import peftlib as pl
from peftlib.experiments.config import Run
from peftlib.experiments.results import COLUMNS, gather, read_row, read_table, tidy, write_row, write_table

METRICS = {"val": {"loss": 0.25, "miou": 1 / 3, "iou_water": 0.5}, "test": {"loss": 0.5, "miou": 0.75}}


def row(key: str = "0123456789012345", status: str = "done", **facts) -> dict:
    """As ``peftlib.experiments.run`` writes it."""
    run = Run(dataset="spectral_scenes", method=pl.LoRA(rank=2), data={"length": 4}, lr=5e-4, tile=8, seed=3)
    found = {"key": key, "run": run.facts(), "versions": {"torch": "2.8", "timm": "1.0"}, "commit": "1234567"}
    found |= {"wall_s": 2.5, "status": status, "error": ""}
    if status == "failed":
        return found | {"error": "ValueError: diverged, NaN (fit.py:3)"} | facts
    found |= {"metrics": METRICS, "headline": "miou", "task": "segmentation", "images": {"train": 9, "val": 4}}
    found |= {"tuned": 21_654_321, "tuned_percent": 98.7654, "adapter_bytes": 86_617_284, "step_ms": 12.345}
    return found | {"peak_mb": None, "device": "cpu (x86_64, 1 threads)", "backbone_hash": "00e1"} | facts


# --- rows ---


def test_a_row_is_written_whole_and_read_back(tmp_path):
    write_row(tmp_path / "new" / "ab.json", row("ab"))
    assert read_row(tmp_path / "new" / "ab.json") == json.loads(json.dumps(row("ab")))
    assert read_row(tmp_path / "cd.json") is None
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["ab.json"]


@pytest.mark.parametrize(
    "content",
    [
        *(text.encode() for text in ("", "{", "[]", "null", "3", '"done"', '{"status": "done"}')),
        b"\xff\xfe",
        json.dumps(row("cd")).encode(),  # of another run
        json.dumps(row("ab", status="lost")).encode(),
        json.dumps(row("ab", metrics={})).encode(),
        json.dumps(row("ab", metrics={"val": {}})).encode(),
        json.dumps(row("ab", run=None)).encode(),
    ],
)
def test_a_damaged_row_counts_as_missing_with_a_warning(content, tmp_path):
    (tmp_path / "ab.json").write_bytes(content)
    with pytest.warns(UserWarning, match=r"ab\.json is damaged .* and counts as missing"):
        assert read_row(tmp_path / "ab.json") is None
    with pytest.warns(UserWarning, match=r"ab\.json is damaged"):
        assert gather(tmp_path).empty


@given(st.integers(0, len(json.dumps(row("ab"), indent=1)) - 1))
def test_a_row_cut_anywhere_counts_as_missing(tmp_path_factory, length):
    path = tmp_path_factory.mktemp("cut") / "ab.json"
    path.write_text(json.dumps(row("ab"), indent=1)[:length])
    with pytest.warns(UserWarning, match="damaged"):
        assert read_row(path) is None


def test_gathered_rows_are_those_of_whole_files(tmp_path):
    for key in ("ab", "cd"):
        write_row(tmp_path / f"{key}.json", row(key))
    (tmp_path / ".ef.x1.json").write_text(json.dumps(row("ef")))  # a write that was cut short leaves such a file
    (tmp_path / "work" / "ef").mkdir(parents=True)
    (tmp_path / "work" / "ef" / "results.json").write_text("{}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gather(tmp_path)["key"].unique().tolist() == ["ab", "cd"]
        assert gather(tmp_path, ["cd", "gone", "ab"])["key"].unique().tolist() == ["cd", "ab"]


# --- tables ---


def test_a_tidy_table_has_a_row_a_run_and_metric():
    table = tidy([row("ab"), row("cd", "failed")])
    assert tuple(table.columns) == COLUMNS and Counter(table["key"]) == {"ab": 5, "cd": 1}
    shown = {(r.split, r.metric): r.value for r in table.itertuples() if r.key == "ab"}
    assert shown == {(split, name): value for split, found in METRICS.items() for name, value in found.items()}
    assert table[table["headline"]]["metric"].tolist() == ["miou", "miou"]
    first = table.iloc[0]
    found = tuple(first[name] for name in ("dataset", "task", "images", "seed", "init", "versions"))
    assert found == ("spectral_scenes", "segmentation", 9, 3, 3, "torch 2.8, timm 1.0")
    assert json.loads(first["options"]) == json.loads(json.dumps(pl.LoRA(rank=2).options()))
    assert tidy([]).empty and tuple(tidy([]).columns) == COLUMNS


def test_no_field_of_a_run_is_lost_in_a_table():
    facts, first = row()["run"], tidy([row()]).iloc[0]
    rest = json.loads(first["recipe"])
    for name, value in facts.items():
        kept = rest[name] if name in rest else first[name]
        assert (json.loads(kept) if name == "options" else kept) == json.loads(json.dumps(value)), name


def test_a_failed_run_is_one_row_with_its_error_and_no_value():
    (failed,) = tidy([row("cd", "failed")]).to_dict("records")
    assert (failed["status"], failed["error"]) == ("failed", "ValueError: diverged, NaN (fit.py:3)")
    assert (failed["split"], failed["metric"], failed["headline"]) == ("", "", False) and pd.isna(failed["value"])
    assert (failed["method"], failed["lr"], failed["wall_s"]) == ("lora", 5e-4, 2.5)


def test_a_table_comes_back_as_it_was_written(tmp_path):
    """Keys, commits and hashes that look like numbers too, and counts to the last digit beside runs without any."""
    table = tidy([row("00000000000000e1"), row("1234567890123456", "failed"), row("1234567890123457", peak_mb=3.5)])
    table["value"] = table["value"].round(5)
    path = write_table(table, tmp_path / "new" / "rows.csv")
    order = ["key", "split", "metric"]
    expected = table[table["metric"] != "iou_water"].sort_values(order).reset_index(drop=True)
    back = read_table(path).sort_values(order).reset_index(drop=True)
    unknown = expected.isna()
    assert unknown.any(axis=None) and (back.isna() | back.eq("") | ~unknown).all(axis=None)
    pd.testing.assert_frame_equal(back.mask(unknown), expected.mask(unknown), check_dtype=False, check_exact=True)
    again = write_table(read_table(path), tmp_path / "again.csv")
    assert again.read_bytes() == path.read_bytes()


def test_classes_are_left_out_of_a_committed_table_unless_they_are_the_headline(tmp_path):
    table = read_table(write_table(tidy([row("ab"), row("cd", headline="iou_water")]), tmp_path / "rows.csv"))
    kept = table[table["metric"] == "iou_water"]
    assert kept["key"].tolist() == ["cd"] and kept["headline"].tolist() == [True]


def test_the_same_rows_in_any_order_give_the_same_file(tmp_path):
    rows = [row("ab"), row("cd", "failed"), row("ef")]
    one, other = (write_table(tidy(found), tmp_path / "rows.csv").read_bytes() for found in (rows, rows[::-1]))
    assert one == other


def test_tables_are_read_by_profile_and_others_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("peftlib.experiments.results.root", lambda: tmp_path)
    write_table(tidy([row("ab")]), tmp_path / "data" / "results" / "quick.csv")
    assert read_table("quick")["key"].unique().tolist() == ["ab"]
    with pytest.raises(FileNotFoundError, match=r"paper\.csv"):
        read_table("paper")
    (tmp_path / "other.csv").write_text("key,value\nab,1\n")
    with pytest.raises(ValueError, match=r"has no columns \['dataset'"):
        read_table(tmp_path / "other.csv")
