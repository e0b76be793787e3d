"""A prefill and a decode server of SGLang 0.5.6 on two H200s, measured by us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from measured_rows import MEASURED, error, refusal, row_of, say_what_requests_say

from simulator.cluster.assembly import assemble
from simulator.cluster.topology import load_topology
from simulator.validation.workloads import WorkloadResult, replay, workload_topology

FOLDER = MEASURED / "h200_sglang_pair"


def replayed(name: str, *overrides: str, **changes: Any) -> WorkloadResult:
    return replay({**row_of(FOLDER, workload=name), **changes}, FOLDER, overrides)


@pytest.mark.parametrize("name", ["lone_4000", "lone_12000", "long_c4", "fixed_12000_300_r1.2"])
def test_what_the_gpus_decide(name: str) -> None:
    found = replayed(name)
    assert abs(error(found, "ttft")) < 10
    assert abs(error(found, "tpot")) < 10


@pytest.mark.parametrize("name", ["lone_1000", "drawn_c16", "drawn_c64"])
def test_what_launches_decide(name: str) -> None:
    """Which of its two states the host was in, the rows do not say."""
    found = replayed(name)
    assert abs(error(found, "ttft")) < 25
    assert abs(error(found, "tpot")) < 10


def test_memory_in_pieces_holds_the_prefill_engine_up() -> None:
    """Without runs of pages a prompt is sent in 1.7 ms whatever memory looks like: TTFT would be a sixth."""
    found = replayed("drawn_c96")
    whole = replayed("drawn_c96", "kv_transfer.per_descriptor_s=0", "kv_transfer.setup_s=1.7e-3")
    assert abs(error(found, "ttft")) < 25
    assert error(whole, "ttft") < -80


def test_pieces_are_as_many_as_were_counted() -> None:
    """In memory that has gone round, 27 on average; in memory that has not, one."""
    sent = pd.read_csv(FOLDER / "transfers.csv.gz")
    assert (sent.pieces == 64 * sent.runs).all()
    assert sent.runs[sent.run == "h200h_pair_small.drawn_c96"].mean() == pytest.approx(27.4, abs=0.1)
    assert sent.runs[sent.run == "h200h_pair.drawn_c64"].median() == 1
    many = sent[sent.runs > 50]
    taken_us = many.list_us + many.prepare_us + many.post_us
    assert many.post_us.sum() / many.pieces.sum() == pytest.approx(8.5, abs=0.2)
    assert taken_us.sum() / many.pieces.sum() == pytest.approx(9.7, abs=0.2)


def test_a_pair_is_two_pools_and_what_lies_between_them() -> None:
    topology = workload_topology(row_of(FOLDER, workload="drawn_c96"), "here", FOLDER)
    assert [(p["role"], p["engine"]) for p in topology["pools"]] == [
        ("prefill", {"max_total_tokens": 65_536}),
        ("decode", {"max_total_tokens": 180_000}),
    ]
    plan = assemble(load_topology(topology))
    assert [worker.kv_blocks for worker in plan.workers] == [65_536, 180_000]
    transfer = plan.transfer
    assert transfer is not None and (transfer.mode, transfer.setup_in_turn) == ("push", True)
    route = transfer.routes[0, 1]
    assert route.per_block_s == 0.0 and route.per_run_s == pytest.approx(64 * 10e-6)
    assert route.delay_s(1000) == pytest.approx(1.1e-3 + 64 * 10e-6)
    assert route.delay_s(1000, 5.0) == pytest.approx(1.1e-3 + 5 * 64 * 10e-6)
    apart = assemble(load_topology(topology, ("kv_transfer.merges_blocks=false", "kv_transfer.setup_in_turn=false")))
    assert apart.transfer is not None and not apart.transfer.setup_in_turn
    assert apart.transfer.routes[0, 1].per_block_s == pytest.approx(64 * 10e-6)


def test_rows_say_what_the_requests_say() -> None:
    say_what_requests_say(FOLDER, 2e-3, 5e-3)


@pytest.mark.parametrize(
    ("column", "cell", "said"),
    [
        ("decode_settings", "max_total_tokens", "decode_settings: found 'max_total_tokens'; allowed: key=value"),
        ("prefill_settings", "page_sise=64", "page_size"),
        ("handover", "carrier pigeon", "network.kind"),
    ],
)
def test_bad_cells_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str, cell: str, said: str
) -> None:
    assert said in refusal(FOLDER, column, cell, tmp_path, capsys)
