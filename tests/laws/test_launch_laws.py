"""What launches and posted reads do to tokens that are already on their way."""

from __future__ import annotations

import numpy as np

from simulator import simulate
from simulator.hardware.links import load_link
from simulator.workload.trace import Trace

ENGINE = {"profile": "vllm-0.25", "max_model_len": 16_000, "prefix_caching": False}


def a_pair(per_descriptor_s: float) -> dict[str, object]:
    return {
        "name": "pair",
        "model": "llama-3.1-8b",
        "engine": ENGINE,
        "pools": [
            {"name": "prefill", "role": "prefill", "gpu": "h200_sxm"},
            {"name": "decode", "role": "decode", "gpu": "h200_sxm"},
        ],
        "network": {"kind": "nvlink", "per_descriptor_s": per_descriptor_s},
    }


def test_posting_a_read_holds_up_the_decode_steps_beside_it() -> None:
    """The decode engine's own loop asks for the second prompt's pieces: 500 blocks x 32 layers x K and V."""
    trace = Trace.from_columns([0.0, 1.0], [64, 8000], [400, 2])
    pieces, each_s = 500 * 32 * 2, 4e-6  # of which the loop stands still for the link's part of posting
    runs = [simulate(trace, a_pair(s)).requests for s in (0.0, each_s)]
    decode_s = [float(run["last_token_s"][0] - run["first_token_s"][0]) for run in runs]
    posting_s = pieces * each_s * load_link("nvlink4").posting
    assert 0.9 * posting_s < decode_s[1] - decode_s[0] < 1.1 * posting_s


def test_a_long_prompt_holds_back_the_token_before_its_step_and_no_step_is_lost() -> None:
    """Launching kernel by kernel takes longer than a decode step; the sum of all steps is what it was."""
    trace = Trace.from_columns([0.0, 1.0], [64, 2000], [400, 2])
    colocated = {"name": "one", "model": "llama-3.1-8b", "engine": ENGINE}
    colocated["pools"] = [{"name": "engine", "role": "colocated", "gpu": "h100_sxm"}]
    done = simulate(trace, colocated, slo="itl_p99=1s").requests
    alone = simulate(Trace.from_columns([0.0], [64], [400]), colocated).requests
    longer = float(done["last_token_s"][0] - alone["last_token_s"][0])
    first = float(done["first_token_s"][1] - 1.0)
    assert 0.6 * first < longer < first
    assert np.isfinite(done["tpot_s"]).all()
