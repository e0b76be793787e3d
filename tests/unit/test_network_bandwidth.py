"""Files of bandwidth over time."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.cluster.assembly import assemble
from simulator.cluster.simulation import run_plan
from simulator.cluster.topology import load_topology
from simulator.errors import TopologyError
from simulator.network.bandwidth import read_bandwidth_trace
from simulator.workload.arrivals import Arrivals
from simulator.workload.trace import Trace


def test_a_trace_is_read_in_bytes_a_second(tmp_path: Path) -> None:
    file = tmp_path / "b.csv"
    file.write_text("time_s,gbit_per_s\n0,8\n2.5,0\n4,16\n")
    trace = read_bandwidth_trace(file)
    assert trace.time_s == (0.0, 2.5, 4.0) and trace.bytes_per_s == (1e9, 0.0, 2e9)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seconds,rate\n0,1\n", "line 1: found seconds,rate; needed: time_s,gbit_per_s"),
        ("time_s,gbit_per_s\n0,x\n", "line 2: found 0,x; needed: two numbers"),
        ("time_s,gbit_per_s\n0,-1\n", "line 2: found 0,-1; both numbers must be 0 or more"),
        ("time_s,gbit_per_s\n1,1\n1,2\n", "line 3: time_s 1 does not come after 1"),
        ("time_s,gbit_per_s\n0,1\n5,0\n", "the last gbit_per_s must be above 0"),
        ("", "line 1: found nothing"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "b.csv"
    file.write_text(text)
    with pytest.raises(TopologyError) as error:
        read_bandwidth_trace(file)
    assert says in str(error.value) and str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_run_follows_its_trace(tmp_path: Path) -> None:
    """A prompt of 1,600 tokens is 210 MB: at 1 Gbit/s for the first 0.5 s after it is done, then at 100."""
    base = ["network={kind: rdma, nic_gbit_per_s: 100, efficiency: 1.0, setup_s: 0, per_descriptor_s: 0}"]
    lone = Trace.from_columns([0.0], [1600], [2])
    fast = run_plan(assemble(load_topology("1p1d", base)), lone, Arrivals())
    start = float(fast.moments.kv_start_s[0])  # type: ignore[union-attr]
    file = tmp_path / "b.csv"
    file.write_text(f"time_s,gbit_per_s\n0,1\n{start + 0.5!r},100\n")
    slow = run_plan(assemble(load_topology("1p1d", [*base, f"network.bandwidth_trace={file}"])), lone, Arrivals())
    size = 1600 * 131_072
    assert fast.network["transfer_mean_s"] == pytest.approx(size / 12.5e9)
    assert slow.network["transfer_mean_s"] == pytest.approx(0.5 + (size - 0.5 * 0.125e9) / 12.5e9)
