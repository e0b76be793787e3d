"""Requests and batches of the SGLang oracle, and reading and comparing its case folders."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

from sglang_radix import Tokens

EOS, OUTPUT, ABORTED_PROMPT, PRIVATE = -1, -2, -3, -10  # tokens that no hashed prompt holds
HASH_BLOCK = 512


class Request:
    def __init__(self, index, line, settings):
        self.index = index
        self.arrival_s = line["arrival_s"]
        self.asked_input, self.output_length = line["input_length"], line["output_length"]
        self.max_new_tokens = line.get("max_new_tokens", line["output_length"])
        self.ignore_eos = settings["ignore_eos"]
        self.prompt = Tokens()
        if line.get("hash_ids"):
            left = self.asked_input
            for block in line["hash_ids"]:
                self.prompt.add(block, min(HASH_BLOCK, left))
                left -= min(HASH_BLOCK, left)
        else:
            self.prompt.add(PRIVATE - index, self.asked_input)
        self.outputs = 0
        self.fill_length = 0  # prompt and outputs as last looked at; the tree never sees further
        self.prefix_len = self.extend_end = 0
        self.node = self.lock = None
        self.matched = 0
        self.protected = 0  # tokens at the front that belong to the tree
        self.committed = 0  # tokens with a KV slot
        self.holds_kv = False
        self.middle_chunks = 0
        self.is_retracted = self.stain = False
        self.to_abort = self.to_finish = self.finished = False
        self.finished_len = None
        self.cached = self.already_computed = 0
        self.times = []
        self.cached_seen = None
        self.retractions = 0

    @property
    def input_length(self):
        return len(self.prompt)

    def tokens(self):
        """Prompt and outputs; the output of number ``output_length`` and all after it are end-of-sequence."""
        plain = self.outputs if self.to_abort else min(self.outputs, self.output_length - 1)
        return self.prompt.copy().add(OUTPUT, plain).add(EOS, self.outputs - plain)

    def append_output(self, now):
        self.outputs += 1
        self.times.append(now)
        if self.to_abort or self.to_finish:
            self.finished = True
        elif (not self.ignore_eos and self.outputs >= self.output_length) or self.outputs >= self.max_new_tokens:
            self.finished, self.finished_len = True, min(self.outputs, self.max_new_tokens)


class Batch:
    def __init__(self, reqs, mode="prefill", chunked=None):
        self.reqs, self.mode, self.chunked = reqs, mode, chunked
        self.full = False
        self.decoding = ()  # of a mixed batch: the requests that only decode in it

    def keep(self, reqs):
        shrunk = len(reqs) < len(self.reqs)
        self.reqs = reqs
        return shrunk


def read_case(folder):
    """Settings, requests, expected rows and the first steps of a case folder."""
    folder = Path(folder)
    settings = json.loads((folder / "case.json").read_text())
    with gzip.open(folder / "trace.jsonl.gz", "rt") as f:
        requests = [json.loads(line) for line in f]
    with gzip.open(folder / "expected.csv.gz", "rt") as f:
        expected = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]
    steps = []
    if (folder / "steps.jsonl.gz").exists():
        with gzip.open(folder / "steps.jsonl.gz", "rt") as f:
            steps = [json.loads(line) for line in f]
    return settings, requests, expected, steps


def differences(rows, steps, expected, expected_steps, tolerance_s=1e-9):
    """Human-readable differences from a case's expectation, worst column by column; empty when exact."""
    out = []
    for i, (want, got) in enumerate(zip(expected_steps, steps, strict=False)):
        same = got["mode"] == want["mode"] and got["retracted"] == want["retracted"]
        same = same and {str(k): v for k, v in got["tokens"].items()} == want["tokens"]
        if not same or abs(got["end_s"] - want["end_s"]) > tolerance_s:
            out.append(f"step {i}: wanted {want}, got {got}")
            break
    for column in expected[0]:
        bad = [
            (row["i"], want[column], row[column])
            for want, row in zip(expected, rows, strict=True)
            if abs(want[column] - row[column]) > tolerance_s * (row["output_length"] if column == "token_sum_s" else 1)
        ]
        if bad:
            out.append(f"{column}: {len(bad)} differ, first (request, wanted, got) {bad[0]}")
    return out
