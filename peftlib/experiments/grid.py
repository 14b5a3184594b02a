"""Grids of runs: planned, spread over workers of any kind, stopped and gone on with, gathered.

runs = grid(Run(dataset="eurosat", method=pl.LoRA(), folds=3), method=[pl.LoRA(), pl.Deflect()], seed=[0, 1, 2])
rows = execute(runs, executor=pool(2))
"""

import itertools
import multiprocessing
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from peftlib.experiments.config import Run
from peftlib.experiments.results import read_row, tidy, write_row
from peftlib.experiments.run import Place, perform, tidy_work
from peftlib.files import runs_dir
from peftlib.training.fit import BEST

HERE = Place()
POLL = 0.05  # seconds between looks at what workers have finished


def rows_dir() -> Path:
    """Where rows lie unless another folder is given: ``runs/rows``. Keys tell runs apart, so all grids share it."""
    return runs_dir() / "rows"


def grid(base: Run, **choices: Sequence) -> list[Run]:
    """Every combination of choices for fields of a run.

    Raises:
        ValueError: a field that runs do not have.
    """
    names = [f.name for f in fields(Run)]
    if unknown := [name for name in choices if name not in names]:
        raise ValueError(f"a run has no {', '.join(unknown)}; it has {', '.join(names)}")
    return [replace(base, **dict(zip(choices, values, strict=True))) for values in itertools.product(*choices.values())]


def execute(
    runs: Iterable[Run],
    executor: Executor | None = None,
    folder: str | Path | None = None,
    place: Place = HERE,
    progress: bool = True,
    retry_failed: bool = True,
    known: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Do what is missing of some runs, and gather the rows of all.

    Called again after a kill, it repeats no finished run, and goes on in the middle of those that were cut short.

    Args:
        runs: which; a run that comes twice is done once.
        executor: anything that has ``submit(function, *arguments)`` and gives futures with ``done()`` and ``result()``:
            ``pool(2)``, ``dask.distributed.Client(...).get_executor()`` (workers of one thread each), a ``submitit``
            executor. None does one run after the other in this process. Workers share ``folder`` and the data.
        folder: of the rows; None is ``rows_dir()``.
        place: on what each worker does its runs.
        progress: show a bar with the time left, and errors as they come.
        retry_failed: try runs again whose row is an error.
        known: rows done before, perhaps elsewhere, such as ``read_table("real")``; its finished runs are not repeated.

    Returns:
        the tidy table of ``peftlib.experiments.results.tidy``.

    Raises:
        FileNotFoundError: data or weights are not there; before anything runs.
        RuntimeError: a worker of a process pool died and took the pool with it.
        KeyboardInterrupt: Ctrl-C; what was finished is kept, and the message says how to go on.
    """
    folder = (rows_dir() if folder is None else Path(folder)).absolute()
    planned = {run.key: run for run in runs}
    if known is not None:
        known = known[known["key"].isin(planned) & (known["status"] == "done")]
        before = set(known["key"])
        planned = {key: run for key, run in planned.items() if key not in before}
    missing = {key: run for key, run in planned.items() if not _finished(folder / f"{key}.json", retry_failed)}
    there = planned.keys() - missing.keys()
    for work in (folder / "work").glob("*"):  # a kill right after a row was written leaves the work
        if work.name in there and {path.name for path in work.glob("*")} != {BEST}:
            tidy_work(work, place.keep)
    bar = tqdm(total=len(planned), initial=len(there), unit="run", disable=not progress, smoothing=0)
    attempt, waiting = uuid.uuid4().hex, {}

    def finished(row: dict) -> None:
        bar.update()
        run = row["run"]
        bar.set_postfix_str(f"{run['dataset']} {run['method']} seed {run['seed']}")
        if row["status"] == "failed" and progress:
            tqdm.write(f"failed: {run['dataset']} {run['method']} seed {run['seed']}: {row['error']}")

    try:
        if executor is None:
            for key, run in missing.items():
                finished(perform(run, key, folder, place))
        else:
            for key, run in missing.items():  # one by one: an interrupt takes back those that are submitted by then
                waiting[executor.submit(perform, run, key, folder, place, attempt)] = key, run
        while waiting:
            for future in [future for future in waiting if future.done()]:
                key, run = waiting.pop(future)
                finished(_result(future, key, run, folder))
            time.sleep(POLL)
    except KeyboardInterrupt:
        _stop(executor, waiting)
        done = sum(_finished(folder / f"{key}.json", False) for key in planned)
        raise KeyboardInterrupt(f"stopped with {done} of {len(planned)} runs finished; run again to go on") from None
    except BrokenExecutor as error:
        _stop(executor, waiting)
        done = sum(_finished(folder / f"{key}.json", False) for key in planned)
        text = f"a worker died ({error}) with {done} of {len(planned)} runs finished"
        raise RuntimeError(f"{text}; run again, with a new pool, to go on. Out of memory? Use fewer workers") from error
    finally:
        bar.close()
    done = tidy(row for row in (read_row(folder / f"{key}.json") for key in planned) if row is not None)
    if known is None or known.empty:
        return done
    return known if done.empty else pd.concat([known, done], ignore_index=True)


def _finished(path: Path, retry_failed: bool) -> bool:
    row = read_row(path)
    return row is not None and (row["status"] == "done" or not retry_failed)


def _result(future, key: str, run: Run, folder: Path) -> dict:
    """The row of a run whose worker has ended; a failed one if the worker was lost."""
    try:
        return future.result()
    except BrokenExecutor:
        raise
    except Exception as error:  # the worker itself; errors of the run come as rows
        there = read_row(folder / f"{key}.json")
        if there is not None and there["status"] == "done":  # it had done its run
            return there
        row = {"key": key, "run": run.facts(), "status": "failed", "error": f"worker lost: {error!r}"[:500]}
        write_row(folder / f"{key}.json", row | {"wall_s": None, "versions": {}, "commit": ""})
        return row


def _stop(executor: Executor | None, waiting: dict) -> None:
    """Take back what has not begun; end what has, which goes on from its last epoch another time."""
    for future in waiting:
        future.cancel()
    if isinstance(executor, ProcessPoolExecutor):
        for process in list((executor._processes or {}).values()):
            process.kill()  # told to terminate, a worker in the midst of training would go on with the next run
        executor.shutdown(cancel_futures=True)


def pool(workers: int, threads: int | None = None) -> ProcessPoolExecutor:
    """Processes of this machine, each with its share of the cores.

    Args:
        workers: how many.
        threads: of PyTorch in each; None shares the cores out.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")  # a fork of a process that has used threads may hang
    return ProcessPoolExecutor(workers, context, _begin_worker, (threads or max(cores // workers, 1),))


def _begin_worker(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    """A worker whose parent was killed would else finish its run beside the next grid's, and wait for ever."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os._exit(1)
