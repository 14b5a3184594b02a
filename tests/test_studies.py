"""`python -m peftlib study` plans the committed rows, all of them and no others, and writes them."""

import pytest

from peftlib.__main__ import main
from peftlib.experiments import grid as experiments
from peftlib.experiments.results import RESULTS, read_table
from peftlib.files import root
from peftlib.studies import decoders as decoder_study


@pytest.fixture
def execute(monkeypatch, tmp_path):
    """Stands in for runs: gives what is committed of them. Where rows are written, and which runs were asked for."""
    asked = set()

    def give(name: str, status: str = "done"):
        rows = read_table(name).assign(status=status)

        def execute(runs, executor=None, known=None):
            keys = {run.key for run in runs}
            asked.update(keys)
            return rows[rows["key"].isin(keys)]

        monkeypatch.setattr(experiments, "execute", execute)
        return asked

    monkeypatch.setattr("peftlib.__main__.root", lambda: tmp_path)
    return give


@pytest.mark.parametrize("name", ["regions", "series"])
def test_a_study_makes_its_committed_rows(name, execute, tmp_path, capsys):
    asked, committed = execute(name), root() / RESULTS / f"{name}.csv"
    assert main(["study", name]) == 0
    assert asked == set(read_table(name)["key"])
    made = tmp_path / RESULTS / f"{name}.csv"
    assert made.read_bytes() == committed.read_bytes()
    assert f"{len(asked)} runs in {made}" in capsys.readouterr().out


def test_decoders_take_what_the_comparison_has(execute, tmp_path, monkeypatch):
    """(Of simulated scenes; the keys of other runs need their images.)"""
    monkeypatch.setattr(decoder_study, "PROFILES", ("quick",))
    asked, rows = execute("decoders"), read_table("decoders")
    assert main(["study", "decoders"]) == 0
    assert asked == set(rows.loc[rows["dataset"] == "spectral_scenes", "key"])


def test_failed_runs_are_no_results(execute, tmp_path, capsys):
    execute("regions", status="failed")
    assert main(["study", "regions"]) == 1
    assert "33 of 33 runs failed, nothing was written; run again" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_study_that_is_not_known_is_refused_with_the_choices(capsys):
    with pytest.raises(SystemExit):
        main(["study", "decoder"])
    assert "choose from" in capsys.readouterr().err
