"""Result rows and their two tables: whole or missing, and as they were after a round through files."""

import json

import pandas as pd
import pytest

import peftlib as pl
from peftlib.experiments.config import Experiment
from peftlib.experiments.results import (
    METRIC_COLUMNS,
    RUN_COLUMNS,
    experiment_fields,
    read_row,
    read_study,
    scores,
    tables,
    write_study,
)

METRICS = {"val": {"loss": 0.25, "miou": 1 / 3, "iou_water": 0.5}, "test": {"loss": 0.5, "miou": 0.75}}


def row(key: str = "0123456789012345", status: str = "done", role: str = "final", **facts) -> dict:
    """As ``peftlib.experiments.run`` writes it."""
    plain = dict(dataset="spectral_scenes", method=pl.LoRA(rank=2), input=pl.EMB(indices=("NDVI",)))
    one = Experiment(**plain, data={"length": 4}, lr=5e-4, tile=8, seed=3, role=role)
    found = {"key": key, "experiment": one.to_dict(), "versions": "torch 2.8", "commit": "1234567", "version": 2}
    found |= {"wall_s": 2.5, "status": status, "error": ""}
    if status == "failed":
        return found | {"error": "ValueError: diverged, NaN (fit.py:3)"} | facts
    found |= {"metrics": METRICS, "primary_metric": "miou", "task": "segmentation", "images": 9}
    found |= {"encoder_parameters": 21_654_321, "input_parameters": 1234, "method_parameters": 0}
    found |= {"adapter_bytes": 86_617_284, "step_ms": 12.345, "peak_mb": None}
    return found | {"device": "cpu (x86_64, 1 threads)", "backbone_hash": "00e1"} | facts


# --- a file a run ---


DAMAGED = [b"", b"{", b"null", b'{"status": "done"}', b"\xff\xfe", json.dumps(row("ab")).encode()[:-9]]
DAMAGED += [json.dumps(other).encode() for other in (row("cd"), row("ab", status="lost"), row("ab", experiment=None))]


@pytest.mark.parametrize("content", [*DAMAGED, json.dumps(row("ab", metrics={"val": {}})).encode()])
def test_a_damaged_row_counts_as_missing_with_a_warning(content, tmp_path):
    (tmp_path / "ab.json").write_bytes(content)
    with pytest.warns(UserWarning, match=r"ab\.json is damaged and counts as missing"):
        assert read_row(tmp_path / "ab.json") is None


# --- tables ---


def test_a_row_a_run_and_role_and_a_row_a_metric():
    runs, metrics = tables([row("ab"), row("ab", role="ablation"), row("cd", "failed")])
    assert (tuple(runs.columns), tuple(metrics.columns)) == (RUN_COLUMNS, METRIC_COLUMNS)
    assert list(zip(runs["key"], runs["role"], strict=True)) == [("ab", "final"), ("ab", "ablation"), ("cd", "final")]
    assert runs["status"].tolist() == ["done", "done", "failed"]
    shown = {(r.split, r.metric): r.value for r in metrics.itertuples()}
    assert shown == {(split, name): value for split, found in METRICS.items() for name, value in found.items()}
    assert len(metrics) == 5 and runs["error"].tolist() == ["", "", "ValueError: diverged, NaN (fit.py:3)"]
    assert runs["images"].tolist()[:2] == [9, 9] and pd.isna(runs["images"][2])
    empty = tables([])
    assert [len(table) for table in empty] == [0, 0] and tuple(empty[0].columns) == RUN_COLUMNS


def test_no_field_of_an_experiment_is_lost_in_a_table():
    (run,) = tables([row()])[0].to_dict("records")
    assert experiment_fields(run) == row()["experiment"]
    assert Experiment.from_dict(experiment_fields(run)) == Experiment.from_dict(row()["experiment"])


def test_tables_come_back_as_they_were_written(tmp_path):
    """Keys, commits and hashes that look like numbers too, and counts to the last digit beside runs without any."""
    written = tables([row("00000000000000e1"), row("1234567890123456", "failed"), row("1234567890123457", peak_mb=3.5)])
    written = written[0], written[1].assign(value=written[1]["value"].round(5))
    folder = write_study(*written, tmp_path / "new" / "study")
    back = read_study(folder)
    for one, other, order in zip(written, back, (["key"], ["key", "split", "metric"]), strict=True):
        one, other = (table.sort_values(order, ignore_index=True) for table in (one, other))
        pd.testing.assert_frame_equal(one, other, check_dtype=False, check_exact=True)
    again = write_study(*(table.sample(frac=1, random_state=0) for table in back), tmp_path / "again")
    for name in ("runs.csv", "metrics.csv"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_studies_are_read_by_name_and_other_tables_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("peftlib.experiments.results.root", lambda: tmp_path)
    assert write_study(*tables([row("ab")]), "main") == tmp_path / "data" / "results" / "main"
    assert read_study("main")[0]["key"].tolist() == ["ab"]
    with pytest.raises(FileNotFoundError, match=r"other.runs\.csv"):
        read_study("other")
    (tmp_path / "data" / "results" / "main" / "metrics.csv").write_text("key,value\nab,1\n")
    with pytest.raises(ValueError, match=r"metrics\.csv has no columns \['split', 'metric'\]"):
        read_study("main")


def test_scores_are_those_of_the_primary_metric_or_the_one_asked_for():
    nan = row("ef", metrics={"val": {"miou": 0.1}, "test": {"miou": float("nan")}})
    made = tables([row("ab"), row("cd", "failed"), row("gh", primary_metric="loss"), nan])
    found = scores(*made)
    assert found[["key", "metric", "percent"]].values.tolist() == [["ab", "miou", 75.0], ["gh", "loss", 50.0]]
    water = scores(*made, split="val", metric="iou_water")
    assert water["percent"].tolist() == [50.0, 50.0] and set(water["metric"]) == {"iou_water"}
