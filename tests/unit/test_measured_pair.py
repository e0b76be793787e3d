"""A prefill and a decode engine of vLLM 0.25.1 on two H200s, measured by us: nothing of it was fitted but how long the
decode engine's loop posts a piece."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.cluster.assembly import assemble
from simulator.cluster.simulation import run_plan
from simulator.cluster.topology import load_topology
from simulator.workload.arrivals import Arrivals
from simulator.workload.trace import Trace

MEASURED = Path(__file__).resolve().parents[2] / "hardware_profiles" / "measured" / "h200_vllm_pair"
RUN = "fixed_12000_300_r1.2"
#: Launches scatter: so many draws of them.
DRAWS = 5


@pytest.fixture(scope="module")
def simulated() -> pd.DataFrame:
    pools = [{"name": role, "role": role, "gpu": "h200_sxm"} for role in ("prefill", "decode")]
    topology = {
        "name": "pair",
        "model": "llama-3.1-8b",
        "engine": "vllm-0.25",
        "pools": pools,
        "network": {"kind": "nvlink"},
        "kv_transfer": {"mode": "pull"},
        "host": {"speed": 1.2},  # as that of another machine of this kind (h200_sxm_vllm)
    }
    rows = pd.read_csv(MEASURED / f"{RUN}.requests.csv.gz")
    trace = Trace.from_columns(rows.arrival_s, rows.input_tokens, rows.output_tokens)
    plan = assemble(load_topology(topology))
    runs = [run_plan(plan, trace, Arrivals(), seed=seed).record for seed in range(DRAWS)]
    ttft_s = np.array([run.first_token_s - run.arrival_s for run in runs])
    tpot_s = np.array([(run.last_token_s - run.first_token_s) / (run.output_tokens - 1) for run in runs])
    return pd.DataFrame({"ttft_ms": 1e3 * ttft_s.mean(axis=0), "tpot_ms": 1e3 * tpot_s.mean(axis=0)})


def test_mean_times_of_the_pair(simulated: pd.DataFrame) -> None:
    measured = pd.read_csv(MEASURED / "workloads.csv").set_index("workload").loc[RUN]
    assert simulated.ttft_ms.mean() == pytest.approx(measured.ttft_mean_ms, rel=0.04)
    assert simulated.tpot_ms.mean() == pytest.approx(measured.tpot_mean_ms, rel=0.04)


def test_each_request_of_the_pair(simulated: pd.DataFrame) -> None:
    rows = pd.read_csv(MEASURED / f"{RUN}.requests.csv.gz")
    measured_ms = 1e3 * (rows.first_token_s - rows.arrival_s)
    errors = np.abs(simulated.ttft_ms / measured_ms - 1)
    assert np.median(errors) < 0.05
    assert np.quantile(errors, 0.9) < 0.12


def test_posting_a_piece_and_carrying_it_take_what_the_connector_counts() -> None:
    rows = pd.read_csv(MEASURED / "transfers.csv")
    later = rows[rows.duplicated("descriptors") & (rows.descriptors >= 16_384)]
    assert len(later) == 8
    assert (later.transfer_s / later.descriptors).between(3.3e-6, 3.9e-6).all()
    assert (later.post_s / later.descriptors).between(2.8e-6, 3.4e-6).all()
