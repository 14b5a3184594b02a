"""Workers by name, for notebooks and command lines: this process, a pool, a Dask cluster, Slurm."""

import os
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path

from peftlib.experiments.grid import pool
from peftlib.files import runs_dir

EXECUTORS = ("in-process", "pool", "dask", "slurm")


@contextmanager
def workers_of(kind: str, workers: int = 0, **options) -> Iterator[Executor | None]:
    """An executor for ``peftlib.experiments.grid.execute``, closed at the end.

    Args:
        kind: ``"in-process"`` (one run after the other), ``"pool"`` (processes of this machine), ``"dask"`` (the
            cluster whose scheduler ``DASK_SCHEDULER_ADDRESS`` names, else one of this machine), or ``"slurm"`` (a job
            a run, through submitit; Slurm's defaults, or ``options``).
        workers: processes of this machine; 0 is one a core, on a GPU one.
        options: for ``"slurm"``, as submitit's ``update_parameters`` takes them, such as ``slurm_partition="gpu"``,
            ``timeout_min=120``.

    Raises:
        ValueError: an unknown kind, or options where there are none.
    """
    if kind not in EXECUTORS:
        raise ValueError(f"executor={kind!r}; choose from {', '.join(EXECUTORS)}")
    if options and kind != "slurm":
        raise ValueError(f"executor={kind!r} takes no options {sorted(options)}; only 'slurm' does")
    workers = workers or default_workers()
    if kind == "in-process":
        yield None
    elif kind == "pool":
        executor = pool(workers)
        try:
            yield executor
        finally:
            executor.shutdown(cancel_futures=True)
    elif kind == "dask":
        from dask.distributed import Client

        address = os.environ.get("DASK_SCHEDULER_ADDRESS")
        local = {} if address else {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
        with Client(address, **local) as client:
            yield client.get_executor()
    else:
        import submitit

        slurm = submitit.AutoExecutor(Path(runs_dir()) / "slurm")
        slurm.update_parameters(**({"timeout_min": 24 * 60} | options))
        yield slurm  # type: ignore[misc]  # it does what is used of an Executor


def default_workers() -> int:
    """One a core, on a GPU one."""
    import torch

    if torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
