"""The trace whose prompts a client sent, where they begin alike: its prefix blocks, in order of sending."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from simulator.errors import InputError
from simulator.validation.clients.openers import json_rows
from simulator.workload.load import load_trace
from simulator.workload.trace import Trace


def read_prefixes(path: str, block_tokens: int | None = None) -> Trace:
    """Any trace that is read elsewhere, too; with ``block_tokens``, JSON lines whose ``hash_ids`` stand for so many
    tokens each, though the file does not say so. Raises InputError for a file without prefix blocks."""
    if block_tokens is None:
        return load_trace(path)
    if block_tokens < 1:
        raise InputError(f"--block-tokens: {block_tokens} is not allowed; allowed: whole numbers from 1")
    rows = json_rows(Path(path))
    inputs, ids = [], []
    for number, row in enumerate(rows, 1):
        tokens, hashes = row.get("input_tokens", row.get("input_length")), row.get("hash_ids")
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise InputError(f"{path}:{number}: input_length: found {tokens!r}; allowed: whole numbers from 1")
        if not isinstance(hashes, list) or not all(isinstance(one, int) for one in hashes):
            raise InputError(
                f"{path}:{number}: hash_ids: found {str(hashes)[:40]!r}; a list of whole numbers is expected"
            )
        inputs.append(tokens)
        ids.append(hashes)
    return Trace.from_columns(
        np.zeros(len(rows)),
        inputs,
        np.ones(len(rows), np.int64),
        hash_ids=np.array([one for row in ids for one in row], np.int64),
        hash_offsets=np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64),
        block_tokens=block_tokens,
        source=path,
    )
