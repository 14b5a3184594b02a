"""The paper's experiment in miniature, from the command line: planned, tried, interrupted, resumed, added to, drawn."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from helpers import PATIENCE, wait_for
from paper_archives import write_paper_archives

import peftlib as pl
from peftlib.experiments.results import read_row, read_study, scores
from peftlib.model.costs import flops
from peftlib.studies.main import PRIMARY, PROFILES
from peftlib.studies.planning import BANDS, priced, step_operations, with_settings
from peftlib.training.tasks import Segmentation

ROOT = Path(__file__).parents[1]
CELLS = ["RGB × LoRA", "DEFLECT"]
TINY = {"steps": 2, "backbone": "test_vit", "weights": "random", "image_size": 64}
COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # started in the background, a process may be deaf to it
from peftlib.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    write_paper_archives(folder / "data")
    return folder


def started(place: Path, notebook: str, **settings) -> subprocess.Popen:
    settings = [f"--set={name}={value}" for name, value in settings.items()]
    folders = {f"PEFTLIB_{name.upper()}": str(place / name) for name in ("data", "runs", "figures")}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "run", notebook, "--profile", "paper", *settings],
        cwd=ROOT, env=os.environ | folders | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def grid(place: Path, **settings) -> subprocess.Popen:
    return started(
        place, "04_full_experiments", cells=CELLS, executor="in-process", accelerator="cpu", **TINY, **settings
    )


def processes_of(place: Path) -> list[str]:
    """Those that were started with the folders of ``place``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"PEFTLIB_RUNS={place}/".encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:  # it has ended, or is another user's
            pass
    return found


def rows(place: Path) -> list[dict]:
    return [row for path in (place / "runs" / "rows").glob("[!.]*.json") if (row := read_row(path))]


@pytest.mark.slow
def test_the_papers_experiment_is_interrupted_resumed_added_to_and_drawn(place):
    odd = next((place / "data" / "MADOS" / "Scene_3" / "10").glob("*_cl_1.tif"))
    whole = odd.read_bytes()
    odd.write_bytes(whole[: len(whole) // 2])

    # Ctrl-C: three lines, and no process stays.
    process = grid(place)
    wait_for(lambda: len(rows(place)) > 8 or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=3 * PATIENCE)
    assert process.returncode == 130 and "Traceback" not in said, said
    assert said.splitlines()[-2].startswith("stopped in 04_full_experiments.ipynb (see ")
    assert said.splitlines()[-1] == "what is finished is kept; the same command again continues"
    wait_for(lambda: not processes_of(place))
    done = {row["key"]: row for row in rows(place)}
    assert len(done) > 8

    # Again: what was finished is not repeated, and a damaged chip leaves out its data set alone.
    process = grid(place)
    _, said = process.communicate(timeout=3 * PATIENCE)
    assert process.returncode == 1, said
    assert "every input with every method: " in said and " days" in said  # the plan
    assert "burn_scars: 12 of 12 runs; all data sets: 0:00:00 left" in said  # progress, and time left
    assert "left out mados: ValueError: " in said and odd.name in said.partition("left out mados: ")[2].splitlines()[0]
    assert odd.name in said.splitlines()[-1]  # the first true error is what it ends with
    now = {row["key"]: row for row in rows(place)}
    assert all(now[key] == row for key, row in done.items() if row["status"] == "done")
    folder = place / "runs" / "paper" / "rows_test_vit_2_64"
    assert set(read_study(folder)[0]["dataset"]) == set(PROFILES["paper"]) - {"mados"}

    # What was left out is added by a call of its own.
    odd.write_bytes(whole)
    process = grid(place, datasets=["mados"])
    _, said = process.communicate(timeout=3 * PATIENCE)
    assert process.returncode == 0, said
    runs, metrics = read_study(folder)
    assert set(runs["status"]) == {"done"} and dict(runs["dataset"].value_counts()) == dict.fromkeys(
        PROFILES["paper"], 12
    )
    assert set(scores(runs, metrics)["metric"]) == {"macro_f1", "iou_burnt", "miou"}
    assert all(0 <= row["reading"] <= 1 for row in rows(place) if row["status"] == "done")

    process = started(place, "05_figures")
    _, said = process.communicate(timeout=3 * PATIENCE)
    assert process.returncode == 0, said
    table = pd.read_csv(place / "figures" / "paper" / "05_table.csv", index_col="input × method, test_vit")
    assert sorted(table.index) == sorted(CELLS)
    heads = ("So2Sat, macro F1", "brick kilns, macro F1", "ForestNet, macro F1", "burn scars, IoU", "burn scars, mIoU")
    assert set(table) == {"tuned, %", *(f"{head} (n=3)" for head in (*heads, "MADOS, mIoU"))}
    published = pd.read_csv(place / "figures" / "paper" / "05_published.csv", index_col=0)
    assert {head.rpartition(" (")[0] for head in table if "n=3" in head} - set(published) == {"burn scars, mIoU"}
    assert (place / "figures" / "paper" / "05_grid.png").is_file()


# --- what is said before ---


def test_the_plan_counts_what_a_trial_measured(monkeypatch):
    """Set-up of 2 s, steps of 100 ms, as the trial had them; arithmetic of a task with its decoder, summed apart."""
    plans = with_settings(PROFILES["paper"], ["mados"], **TINY | {"steps": 50})
    tried = pd.DataFrame({"dataset": ["mados"], "wall_s": [3.0], "steps": [10], "step_ms": [100.0]})
    table = priced(plans, {"DEFLECT": PRIMARY["DEFLECT"]}, tried)
    assert table["hours"].tolist() == [round(7 * 7 / 3600, 3)] * 2 and table["searches"].tolist() == [4, 4]
    (one,) = plans["mados"].experiments(PRIMARY["DEFLECT"], [{}])
    model = pl.adapt(pl.load_backbone("test_vit", "random", 64), one.method, BANDS, input=one.input)
    task = Segmentation(model, 15, decoder="upernet")
    assert step_operations(one) == pytest.approx(32 * flops(model, task)[1], rel=0.03)


def test_res_is_that_of_the_resized_images_and_data_sets_are_named():
    plans = with_settings(PROFILES["paper"], ["so2sat"], backbone="scalemae_large")
    assert plans["so2sat"].setting.res == pytest.approx(10 * 32 / 224, abs=1e-4)
    assert with_settings(PROFILES["paper"])["so2sat"].setting.res is None
    with pytest.raises(ValueError, match="no plan for madoss; choose from so2sat"):
        with_settings(PROFILES["paper"], ["madoss"])


@pytest.mark.slow
def test_the_primary_cells_cost_less_than_five_days():
    assert priced(with_settings(PROFILES["paper"], backbone="scalemae_large"), PRIMARY)["days"].iloc[-1] < 5
