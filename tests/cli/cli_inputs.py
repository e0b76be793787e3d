"""Small inputs for the command's tests: steps of explicit time, so that no table is needed and a run takes no time."""

from __future__ import annotations

import json

from simulator.cli import main

COLOCATED = """
name: one
step_time: {kind: affine, base_s: 0.01, per_token_s: 1.0e-5}
kv_blocks: 1000
pools:
  - {name: main, role: colocated}
"""

SPLIT = """
name: split
step_time: {kind: affine, base_s: 0.01, per_token_s: 1.0e-5}
kv_blocks: 1000
kv_transfer: {mode: pull, setup_s: 0.002, per_block_s: 0.0001}
pools:
  - {name: prefill, role: prefill}
  - {name: decode, role: decode}
"""


def write_inputs(folder, requests=20, gap_s=0.1):
    """``t.jsonl``, ``one.yaml`` and ``split.yaml`` in ``folder``; returns their paths as texts."""
    lines = [
        json.dumps(
            {"arrival_s": round(i * gap_s, 6), "input_tokens": 100 + i, "output_tokens": 5, "tenant": "ab"[i % 2]}
        )
        for i in range(requests)
    ]
    (folder / "t.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "one.yaml").write_text(COLOCATED)
    (folder / "split.yaml").write_text(SPLIT)
    return str(folder / "t.jsonl"), str(folder / "one.yaml"), str(folder / "split.yaml")


def run(capsys, *words):
    """Exit code, stdout and stderr of ``simulate WORDS``."""
    code = main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def refused(capsys, *words):
    """The one line with which ``simulate WORDS`` is refused."""
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, ""), err
    assert err.startswith("simulate: ")
    assert err.count("\n") == 1, err
    return err.removeprefix("simulate: ").strip()
