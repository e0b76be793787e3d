"""Of repeated calibration runs the quickest counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from simulator.validation.clients.measured import Measured
from simulator.validation.fit_run import undisturbed


def run(name: str, e2e_s: float, *, tokens: int = 64, span_s: float = 10.0, clients: int = 0) -> Measured:
    requests = 20
    return Measured(
        name=name,
        source=str(Path(f"{name}.json")),
        client="vllm bench serve",
        load="open",
        sent_s=np.linspace(0.0, span_s, requests),
        input_tokens=np.full(requests, tokens),
        output_tokens=np.full(requests, 8),
        ttft_s=np.full(requests, e2e_s / 2),
        e2e_s=np.full(requests, e2e_s),
        clients=clients,
    )


def test_the_quickest_of_repeats_is_kept_and_the_others_are_named() -> None:
    runs = [run("first", 0.5), run("disturbed", 0.9), run("best", 0.4, span_s=10.2), run("longer", 2.0, tokens=512)]
    kept, slower = undisturbed(runs)
    assert [one.name for one in kept] == ["best", "longer"]
    assert slower == ["first", "disturbed"]


def test_other_rates_and_other_numbers_of_clients_are_no_repeats() -> None:
    runs = [run("slow", 0.4, span_s=20.0), run("fast", 0.9, span_s=10.0), run("eight", 0.9, clients=8)]
    assert undisturbed(runs) == (runs, [])
    closed = replace(run("again", 0.5, span_s=5.0), clients=8)  # a closed loop sends as fast as it is answered
    assert [one.name for one in undisturbed([*runs, closed])[0]] == ["slow", "fast", "again"]
