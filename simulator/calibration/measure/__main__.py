"""``python -m simulator.calibration.measure``: the measuring part alone, for machines that have only torch or NumPy."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from simulator.calibration.measure.ops import Ops
from simulator.calibration.measure.plan import read_plan, tiny_plan
from simulator.calibration.measure.run import Budget, measure, store_at
from simulator.resources import shipped

#: The plan that ``simulate calibrate`` draws up from the catalogue of models.
SHIPPED_PLAN = "measured/plan.json"


def machine_of(device: str, flash: str | None = None) -> Ops:
    """The machine: 'cuda', 'cpu' (torch) or 'numpy'. Raises ImportError without torch."""
    if device == "numpy":
        from simulator.calibration.measure.numpy_ops import NumpyOps

        return NumpyOps()
    from simulator.calibration.measure.torch_ops import TorchOps

    return TorchOps(device, flash=flash)


def provenance(ops: Ops) -> dict[str, object]:
    """Where rows come from."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {
        **ops.machine(),
        "kernel_errors": ops.errors(),
        "date": now,
        "command": " ".join(["measure", *sys.argv[1:]]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m simulator.calibration.measure", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for rows.jsonl and machine.json")
    parser.add_argument("--device", choices=("cuda", "cpu", "numpy"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a few small cases")
    parser.add_argument("--plan", type=Path, help="plan.json (default: the shipped one)")
    parser.add_argument("--minutes", type=float, default=1.5, help="at most so long a group")
    parser.add_argument("--total-minutes", type=float, default=60.0, help="at most so long in all")
    parser.add_argument("--flash-attention", help="vLLM's _vllm_fa3_C library (default: the installed vLLM's)")
    parser.add_argument("--groups", nargs="*", default=[])
    given = parser.parse_args()
    plan = tiny_plan() if given.tiny else read_plan(given.plan or shipped("hardware_profiles") / SHIPPED_PLAN)
    ops = machine_of(given.device, given.flash_attention)
    store = store_at(given.out)
    (given.out / "machine.json").write_text(json.dumps(provenance(ops), indent=1) + "\n", encoding="utf-8")
    budget = Budget(60 * given.minutes, 60 * given.total_minutes)
    start = time.monotonic()
    measure(
        ops,
        plan,
        store,
        budget,
        lambda line: print(f"{time.monotonic() - start:6.0f} s  {line}", flush=True),
        given.groups,
    )


if __name__ == "__main__":
    main()
