"""A grid of experiments: here, in processes, on Dask or Slurm; what is finished is never repeated."""

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import cpu_count
from tqdm import tqdm

from peftlib.experiments.config import Experiment
from peftlib.experiments.results import DONE, FAILED, read_row, tables
from peftlib.experiments.run import Resources, run_experiment
from peftlib.files import runs_dir

EXECUTORS = ("in-process", "processes", "dask", "slurm")
DAY = {"time": 24 * 60}  # minutes that a job of Slurm may take, unless it is said
POLL = 0.05  # seconds between looks at what workers have finished


def grid(base: Experiment, **choices: Sequence) -> list[Experiment]:
    """Every combination of choices for fields of an experiment. A ``method`` alone keeps the base's input."""
    names = [f.name for f in fields(Experiment)]
    if unknown := [name for name in choices if name not in names]:
        raise ValueError(f"an experiment has no {', '.join(unknown)}; it has {', '.join(names)}")
    return [replace(base, **dict(zip(choices, values, strict=True))) for values in itertools.product(*choices.values())]


def execute(
    experiments: Iterable[Experiment], executor: Any = "in-process", workers: int = 0,
    folder: str | Path | None = None, resources: Resources | None = None, progress: bool = True, **options,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """Run what is missing of some experiments, and gather the rows of all: the tables of runs and metrics.

    Called again after a kill, it repeats no finished run, resumes those cut short, and tries failed ones again.

    Args:
        experiments: which; one that comes twice, or in several roles, runs once.
        executor: ``"in-process"`` (one after the other), ``"processes"`` of this machine, ``"dask"``, ``"slurm"`` (job
            arrays of a job a run, through submitit), or anything that has ``submit(function, *arguments)`` and gives
            futures with ``done()`` and ``result()``. Workers share ``folder`` and the data.
        workers: processes of this machine; 0 is one a core, on a GPU one.
        folder: of the rows; None is ``runs/rows``, for all grids: keys tell runs apart.
        resources: on what each worker runs.
        progress: show a bar with the time left and the share of time spent reading, and errors as they come.
        options: for ``"dask"``, ``address`` of the scheduler, ``"tcp://host:8786"``; without it is a cluster of this
            machine. For ``"slurm"``, as submitit's ``SlurmExecutor`` takes them, such as ``gpus_per_node=1``.

    Raises:
        FileNotFoundError: data or weights are not there; before anything runs.
        RuntimeError: no Slurm here, or sbatch refuses the options.
        BrokenExecutor: a process died, out of memory perhaps; what was finished is kept. Call again to continue.
        KeyboardInterrupt: Ctrl-C; what was finished is kept, and the message says how to continue.
    """
    folder, resources = Path(folder or runs_dir() / "rows").absolute(), resources or Resources()
    planned = {(one.key, one.role): one for one in experiments}
    unique: dict[str, Experiment] = {}
    for (key, _), one in planned.items():
        unique.setdefault(key, one)
    rows = {key: row for key in unique if (row := read_row(folder / f"{key}.json")) is not None}
    missing = {k: one for k, one in unique.items() if k not in rows or rows[k]["status"] == FAILED}
    bar = tqdm(total=len(unique), initial=len(unique) - len(missing), unit="run", disable=not progress, smoothing=0)
    try:
        with _submitter(executor, workers, options) as (submit, batch):
            for key, row in _completed(missing, submit, batch, folder, resources):
                rows[key] = row
                bar.set_postfix_str(f"reading {row['reading']:.0%}" if "reading" in row else "", refresh=False)
                bar.update()
                if row["status"] == FAILED and progress:
                    told = f"failed: {missing[key].dataset} {missing[key].method}: {row['error']}"
                    tqdm.write(told, file=sys.stderr)
    except KeyboardInterrupt:
        finished = sum(row["status"] == DONE for row in rows.values())
        said = f"stopped with {finished} of {len(unique)} runs finished; run again to continue"
        raise KeyboardInterrupt(said) from None
    finally:
        bar.close()
    return tables(rows[key] | {"experiment": rows[key]["experiment"] | {"role": role}} for key, role in planned)


def _completed(missing: dict, submit, batch, folder: Path, resources: Resources) -> Iterator[tuple[str, dict]]:
    """Key and row of each run, in the order in which they end."""
    if submit is None:
        for key, one in missing.items():
            yield key, run_experiment(one, folder, resources, key)
        return
    with batch() if missing else nullcontext():
        waiting = {submit(run_experiment, one, folder, resources, key): key for key, one in missing.items()}
    try:
        while waiting:
            for future in [future for future in waiting if future.done()]:
                key = waiting.pop(future)
                try:
                    row = future.result()
                except BrokenExecutor:  # a process died, out of memory perhaps, and took the others with it
                    raise
                except Exception as error:  # the worker itself was lost; errors of a run come as rows
                    row = {"key": key, "experiment": missing[key].to_dict(), "status": FAILED}
                    row = read_row(folder / f"{key}.json") or row | {"error": f"worker lost: {error!r}"[:500]}
                yield key, row
            time.sleep(POLL)
    finally:
        for future in waiting:
            future.cancel()


@contextmanager
def _submitter(executor: Any, workers: int, options: dict) -> Iterator[Any]:
    """The ``submit`` of an executor, None for this process, and a context in which submissions belong together.

    What was made here is closed in the end.
    """
    if isinstance(executor, str) and executor not in EXECUTORS:
        raise ValueError(f"executor={executor!r}; choose from {', '.join(EXECUTORS)}, or give an object with submit()")
    known = options if executor == "slurm" else {"address"} if executor == "dask" else ()
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"executor={executor!r} takes no options {unknown}; 'dask' takes address, 'slurm' any")
    if executor == "in-process":
        yield None, nullcontext
    elif executor == "processes":
        from joblib.externals.loky import ProcessPoolExecutor

        threads = max(cpu_count() // _count(workers), 1)
        pool = ProcessPoolExecutor(_count(workers), initializer=_begin_worker, initargs=(threads, os.getpid()))
        try:
            yield pool.submit, nullcontext
        finally:
            pool.shutdown(kill_workers=True)
    elif executor == "dask":
        from dask.distributed import Client

        local = {"n_workers": _count(workers), "threads_per_worker": 1, "dashboard_address": None}
        with Client(**(options or local)) as client:
            yield client.get_executor(pure=False).submit, nullcontext  # a failed run is tried again
    elif executor == "slurm":
        from submitit import SlurmExecutor  # not its AutoExecutor, which would run here where there is no Slurm

        slurm = SlurmExecutor(runs_dir() / "slurm")
        slurm.update_parameters(**(DAY | options))
        yield slurm.submit, slurm.batch
    else:
        yield executor.submit, nullcontext


def sbatch_options(**options) -> str:
    """The ``#SBATCH`` lines of the jobs of ``execute(..., executor="slurm", **options)``; nothing is submitted."""
    from submitit import SlurmExecutor

    dry = type("Dry", (SlurmExecutor,), {"affinity": classmethod(lambda _: 1)})(runs_dir() / "slurm")
    dry.update_parameters(**(DAY | options))
    return "\n".join(line for line in dry._make_submission_file_text("", "").splitlines() if "#SBATCH" in line)


def _begin_worker(threads: int, parent: int) -> None:
    import torch

    def end_with_parent() -> None:  # which was killed; else a worker would finish its run beside the next grid's
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its workers
    torch.set_num_threads(threads)
    threading.Thread(target=end_with_parent, daemon=True).start()


def _count(workers: int) -> int:
    import torch

    return workers or (1 if torch.cuda.is_available() else cpu_count())
