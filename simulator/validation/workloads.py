"""``simulate validate workloads``: replayed workloads of a measured engine, request by request.

A folder holds ``workloads.csv`` (one row a run: stage, model, GPU, the engine's settings, measured percentiles) and
``STAGE.WORKLOAD.requests.csv.gz`` (arrival, lengths and, where prompts shared prefixes, ``hash_ids`` or
``cached_tokens``). A run with a number in ``clients`` is a closed loop: they take the requests in the order of their
arrival, which says nothing else. ``engine_profile`` names one where the folder's engine was not run in process;
``engine_settings`` holds further settings of it, as ``mixed_chunk=true max_prefill_tokens=2500``, and ``weights`` the
format of the model's weights where it is not that of the model. ``handover``, a kind of network (nvlink, rdma), says
that a prefill engine hands KV to a decode engine over it; ``prefill_settings`` and ``decode_settings`` are what they do
not have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulator.cluster.assembly import assemble
from simulator.cluster.plan import ClusterPlan
from simulator.cluster.simulation import run_plan
from simulator.cluster.topology import load_topology
from simulator.errors import InputError
from simulator.schema import parse_yaml
from simulator.validation.machines import host_of
from simulator.validation.prefix_hits import shared_prefixes
from simulator.validation.routing import profile_of
from simulator.validation.tables import read_table, rows_of
from simulator.workload.arrivals import Arrivals
from simulator.workload.trace import Trace

STATISTICS = ("mean", "p50", "p90", "p99")
METRICS = ("ttft", "tpot")
NEEDED = (
    "stage",
    "workload",
    "model",
    "gpu",
    "kv_blocks",
    "block_size",
    "prefix_caching",
    "max_num_batched_tokens",
    "max_num_seqs",
    "async_scheduling",
    "max_model_len",
)
#: Settings of the engine, and what topologies call them where that differs.
_COUNTS = ("kv_blocks", "block_size", "max_num_batched_tokens", "max_num_seqs", "max_model_len")
_FLAGS = ("prefix_caching", "async_scheduling")
_SETTINGS = {"kv_blocks": "num_gpu_blocks_override"}
_WORDS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
#: Launches scatter: a run is simulated with so many draws, and its statistics are their means.
DRAWS = 25
#: Words in a device's own name (nvidia-smi) that tell which profile it is.
_DEVICES = (
    ("H100", "h100_sxm"),
    ("H200", "h200_sxm"),
    ("GB200", "gb200"),
    ("B200", "b200_sxm"),
    ("A100", "a100_80gb_sxm"),
)


@dataclass(frozen=True)
class Figure:
    """One statistic of one run, in milliseconds. ``scatter_percent``: standard deviation of single simulated runs about
    their mean, and so what the measured one may be off by chance alone."""

    metric: str
    statistic: str
    measured_ms: float
    simulated_ms: float
    scatter_percent: float = 0.0

    @property
    def error_percent(self) -> float:
        """Simulated over measured, less one."""
        return 100.0 * (self.simulated_ms / self.measured_ms - 1.0)


@dataclass(frozen=True)
class WorkloadResult:
    """One replayed run."""

    stage: str
    workload: str
    requests: int
    figures: tuple[Figure, ...]

    @property
    def name(self) -> str:
        """Stage and workload."""
        return f"{self.stage}.{self.workload}"

    def worst_percent(self) -> float:
        """Largest error of any figure."""
        return max(abs(figure.error_percent) for figure in self.figures)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        figures = [{**asdict(f), "error_percent": f.error_percent} for f in self.figures]
        return {"stage": self.stage, "workload": self.workload, "requests": self.requests, "figures": figures}


def device_profile(name: str, place: str) -> str:
    """The GPU profile of a device as its driver calls it."""
    for word, profile in _DEVICES:
        if word in name:
            return profile
    raise InputError(f"{place}: gpu '{name}' is not known; allowed: names with {', '.join(w for w, _ in _DEVICES)}")


def workload_topology(row: Mapping[str, Any], place: str, folder: Path) -> dict[str, Any]:
    """The topology of one measured run: its engine's settings and KV blocks, and its machine's host."""
    gpu = device_profile(str(row["gpu"]), place)
    settings = {name: _whole(row, name, place) for name in _COUNTS} | {name: _flag(row, name, place) for name in _FLAGS}
    engine = {_SETTINGS.get(name, name): value for name, value in settings.items() if value is not None}
    engine |= _stated_settings(row, "engine_settings", place)
    apart = {role: _stated_settings(row, f"{role}_settings", place) for role in ("prefill", "decode")}
    weights = row.get("weights")
    precision = {} if pd.isna(weights) else {"precision": {"weights": str(weights)}}
    return precision | {
        "name": f"{row['stage']}.{row['workload']}",
        "model": str(row["model"]),
        "engine": {"profile": profile_of(row, gpu, folder, place), **engine},
        "host": host_of(row, gpu, place),
        **_pools(row, gpu, apart),
    }


def _pools(row: Mapping[str, Any], gpu: str, apart: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """One engine, or a prefill and a decode engine and the network between them."""
    kind = row.get("handover")
    if pd.isna(kind):
        return {"pools": [{"name": "engine", "role": "colocated", "gpu": gpu}]}
    pools = [{"name": role, "role": role, "gpu": gpu, "engine": own} for role, own in apart.items()]
    return {"pools": pools, "network": {"kind": str(kind)}}


def _stated_settings(row: Mapping[str, Any], column: str, place: str) -> dict[str, Any]:
    """``key=value`` pairs between spaces; none where the cell is empty."""
    cell = row.get(column)
    if pd.isna(cell):
        return {}
    found: dict[str, Any] = {}
    for pair in str(cell).split():
        key, sign, value = pair.partition("=")
        if not (key and sign and value):
            raise InputError(f"{place}: {column}: found '{pair}'; allowed: key=value, several between spaces")
        found |= parse_yaml(f"{key}: {value}", f"{place}: {column}: found '{pair}'")
    return found


def _arrivals(row: Mapping[str, Any], place: str) -> Arrivals:
    clients = _whole(row, "clients", place)
    return Arrivals() if clients is None else Arrivals("closed", clients=clients)


def _whole(row: Mapping[str, Any], name: str, place: str) -> int | None:
    """A whole number; None, the engine's default, where the cell is empty or there is no such column."""
    if pd.isna(row.get(name)):
        return None
    found = pd.to_numeric(row[name], errors="coerce")
    if not found >= 1 or found != int(found):
        raise InputError(f"{place}: {name}: found '{row[name]}'; allowed: a whole number of 1 or more")
    return int(found)


def _flag(row: Mapping[str, Any], name: str, place: str) -> bool | None:
    """A yes or no; None, the engine's default, where the cell is empty."""
    if pd.isna(row[name]):
        return None
    found = _WORDS.get(str(row[name]).strip().lower())
    if found is None:
        raise InputError(f"{place}: {name}: found '{row[name]}'; allowed: True, False")
    return found


def requests_trace(path: Path, block_tokens: int) -> Trace:
    """The requests a run sent to an engine with blocks of ``block_tokens``: lengths, arrivals, and the prefixes they
    share (``hash_ids``, space-separated, with ``block_tokens``; else what ``cached_tokens`` tells of them)."""
    table = read_table(path, ("arrival_s", "input_tokens", "output_tokens"))
    table = table.sort_values("arrival_s", kind="stable")
    return Trace.from_columns(
        table["arrival_s"].to_numpy(np.float64),
        table["input_tokens"].to_numpy(np.int64),
        table["output_tokens"].to_numpy(np.int64),
        max_output_tokens=table["output_tokens"].to_numpy(np.int64),  # clients of benchmarks ask for what they get
        name=path.name.removesuffix(".requests.csv.gz"),
        source=str(path),
        **shared_prefixes(table, block_tokens, str(path)),
    )


def statistics(values_s: np.ndarray[Any, Any]) -> dict[str, float]:
    """Mean and percentiles in milliseconds."""
    return {"mean": float(values_s.mean()) * 1e3} | {
        name: float(np.percentile(values_s, int(name[1:]))) * 1e3 for name in STATISTICS[1:]
    }


def _run_statistics(plan: ClusterPlan, trace: Trace, arrivals: Arrivals, seed: int) -> dict[str, dict[str, float]]:
    """Statistics of TTFT and TPOT of one simulated run."""
    record = run_plan(plan, trace, arrivals, seed=seed).record
    several = record.output_tokens > 1
    tpot = (record.last_token_s - record.first_token_s)[several] / (record.output_tokens[several] - 1)
    return {"ttft": statistics(record.first_token_s - record.arrival_s), "tpot": statistics(tpot)}


def _scatters(plan: ClusterPlan) -> bool:
    """Whether how long a launch takes is left to chance."""
    costs = [worker.step_cost for worker in plan.workers]
    return any(cost.launch_jitter > 0 or cost.launch_swing > 0 or cost.stall_rate_hz > 0 for cost in costs)


def replay(
    row: Mapping[str, Any], folder: Path, overrides: tuple[str, ...] = (), *, draws: int = DRAWS
) -> WorkloadResult:
    """Replay one run, ``draws`` times where launches scatter, and compare; ``overrides`` change the topology
    (``path.to.key=value``)."""
    place = f"{folder / 'workloads.csv'}: {row['stage']}.{row['workload']}"
    plan = assemble(load_topology(workload_topology(row, place, folder), overrides))
    path = folder / f"{row['stage']}.{row['workload']}.requests.csv.gz"
    trace = requests_trace(path, plan.workers[0].block_size)
    arrivals = _arrivals(row, place)
    drawn = [_run_statistics(plan, trace, arrivals, seed) for seed in range(draws if _scatters(plan) else 1)]
    figures = []
    for metric in METRICS:
        for name in STATISTICS:
            measured = row.get(f"{metric}_{name}_ms")
            if measured is not None and not pd.isna(measured):
                found = np.array([one[metric][name] for one in drawn])
                scatter = 100.0 * found.std(ddof=1) / found.mean() if found.size > 1 else 0.0
                figures.append(Figure(metric, name, float(measured), float(found.mean()), float(scatter)))
    return WorkloadResult(str(row["stage"]), str(row["workload"]), len(trace), tuple(figures))


@dataclass(frozen=True)
class WorkloadsReport:
    """All replayed runs."""

    results: tuple[WorkloadResult, ...]

    def mean_error_percent(self, metric: str, statistic: str) -> float:
        """Mean absolute error of one statistic over the runs."""
        return self._mean(metric, statistic, lambda figure: abs(figure.error_percent))

    def mean_scatter_percent(self, metric: str, statistic: str) -> float:
        """Mean over the runs of what a single run of each scatters by; 0 where nothing in them is left to chance."""
        return self._mean(metric, statistic, lambda figure: figure.scatter_percent)

    def _mean(self, metric: str, statistic: str, value: Callable[[Figure], float]) -> float:
        figures = (figure for result in self.results for figure in result.figures)
        found = [value(figure) for figure in figures if (figure.metric, figure.statistic) == (metric, statistic)]
        return float(np.mean(found)) if found else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        means = {m: {s: self.mean_error_percent(m, s) for s in STATISTICS} for m in METRICS}
        return {"schema": 1, "mean_absolute_error_percent": means, "runs": [r.to_dict() for r in self.results]}


def validate_workloads(
    folder: str | Path,
    *,
    overrides: tuple[str, ...] = (),
    draws: int = DRAWS,
    progress: Callable[[str], None] | None = None,
) -> WorkloadsReport:
    """Replay every run of ``folder``, ``draws`` times where launches scatter. Raises InputError for a missing or
    malformed file."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    table = read_table(folder / "workloads.csv", NEEDED)
    results = []
    for row in rows_of(table):
        if progress is not None:
            progress(f"{row['stage']}.{row['workload']}")
        results.append(replay(row, folder, overrides, draws=draws))
    return WorkloadsReport(tuple(results))
