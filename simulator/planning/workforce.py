"""Who does the runs: this process, several beside it (joblib), or a Dask cluster. The same runs give the same bytes."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from simulator.cluster.simulation import ready
from simulator.errors import InputError
from simulator.planning.runs import Outcome, Run, perform, plan_of
from simulator.workload.trace import Trace

#: Traces that a worker process keeps loaded.
_TRACES_KEPT = 8
_CONNECT_S = 10.0


@dataclass(frozen=True)
class Workforce:
    """``jobs`` processes on this machine (0: one a core), or the Dask cluster at ``dask`` (``tcp://host:8786``)."""

    jobs: int = 1
    dask: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.jobs, bool) or not isinstance(self.jobs, int) or self.jobs < 0:
            raise InputError(f"--jobs: {self.jobs!r}; allowed: whole numbers from 0 (0: one a core)")

    @classmethod
    def parse(cls, executor: str | None, jobs: int) -> Workforce:
        """Read ``--executor``: ``local`` or ``dask:tcp://host:8786``."""
        if executor in (None, "local"):
            return cls(jobs)
        kind, _, address = str(executor).partition(":")
        if kind != "dask" or "://" not in address:
            raise InputError(f"--executor: '{executor}'; allowed: local, dask:tcp://HOST:PORT")
        return cls(jobs, address)

    @property
    def processes(self) -> int:
        """Processes on this machine."""
        return self.jobs or len(os.sched_getaffinity(0))


def outcomes(runs: Sequence[Run], traces: Mapping[str, Trace], workforce: Workforce) -> Iterator[tuple[int, Outcome]]:
    """Index and outcome of each run, as they are finished. ``traces``: every trace the runs name, by digest."""
    if not runs:
        return
    if workforce.dask is not None:
        yield from _on_dask(runs, traces, workforce.dask)
        return
    first = 0
    if workforce.processes > 1 and not _compiled(runs[0]):  # else every process would compile for itself
        yield 0, perform(runs[0], traces[runs[0].trace])
        first = 1
    if workforce.processes == 1 or len(runs) - first < 2:
        for index in range(first, len(runs)):
            yield index, perform(runs[index], traces[runs[index].trace])
        return
    yield from _on_joblib(runs, first, traces, workforce.processes)


def _compiled(run: Run) -> bool:
    try:
        return ready(plan_of(run.topology))
    except InputError:
        return True


def _on_joblib(
    runs: Sequence[Run], first: int, traces: Mapping[str, Trace], processes: int
) -> Iterator[tuple[int, Outcome]]:
    from joblib import Parallel, delayed

    with tempfile.TemporaryDirectory(prefix="simulate-") as folder:
        for digest in {run.trace for run in runs[first:]}:
            (Path(folder) / digest).write_bytes(pickle.dumps(traces[digest], protocol=5))
        work = Parallel(n_jobs=processes, return_as="generator_unordered", batch_size=1, pre_dispatch="3*n_jobs")
        yield from work(delayed(_from_folder)(index, runs[index], folder) for index in range(first, len(runs)))


def _from_folder(index: int, run: Run, folder: str) -> tuple[int, Outcome]:
    return index, perform(run, _kept_trace(f"{folder}/{run.trace}"))


@lru_cache(maxsize=_TRACES_KEPT)
def _kept_trace(path: str) -> Trace:
    trace: Trace = pickle.loads(Path(path).read_bytes())
    return trace


def _on_dask(runs: Sequence[Run], traces: Mapping[str, Trace], address: str) -> Iterator[tuple[int, Outcome]]:
    try:
        import distributed
    except ImportError:
        raise InputError("--executor: dask is not installed; pip install 'pd-simulator[dask]'") from None
    try:
        dask: Any = distributed
        client = dask.Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as problem:
        raise InputError(f"--executor: no Dask scheduler answers at {address} ({type(problem).__name__})") from None
    with client:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            raise InputError(f"--executor: the Dask scheduler at {address} has no workers; start some with dask worker")
        held = {digest: client.scatter(traces[digest], broadcast=True) for digest in {run.trace for run in runs}}
        futures = [client.submit(_scattered, i, run, held[run.trace], pure=False) for i, run in enumerate(runs)]
        for _, found in dask.as_completed(futures, loop=client.loop, with_results=True):
            yield found


def _scattered(index: int, run: Run, trace: Trace) -> tuple[int, Outcome]:
    return index, perform(run, trace)
