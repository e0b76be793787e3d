"""What the tokens of a request are, as far as caches can tell: runs of equal content ids.

A prompt with ``hash_ids`` is one run of ``hash_block_tokens`` tokens for each id, cut at the prompt's length. Without
them it is a single run with the request's own id, so that nothing is shared. Output tokens follow as one more run.
Turns of a session carry the session's id for prompt and output alike: a later prompt begins with the earlier ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.compiled import compiled, record

Ints = NDArray[np.int64]

#: Content ids of prompts that share nothing, and of outputs, start here; ids in traces must stay below.
PRIVATE_CONTENT = 1 << 44
OUTPUT_CONTENT = 1 << 45
SESSION_CONTENT = 1 << 46

_LANE = (1 << 31) - 1

Content = record(
    "Content",
    ("input_tokens", "hash_ids", "hash_offsets", "hash_block_tokens", "prompt_content", "output_content"),
    __name__,
)


@compiled
def make_content(input_tokens, hash_ids, hash_offsets, hash_block_tokens, prompt_content, output_content):  # type: ignore[no-untyped-def]
    return Content(input_tokens, hash_ids, hash_offsets, hash_block_tokens, prompt_content, output_content)


@compiled
def run_at(content, row, position):  # type: ignore[no-untyped-def]
    """Content id of the token at ``position``, and the position at which its run ends."""
    prompt = content.input_tokens[row]
    if position >= prompt:
        return content.output_content[row], 1 << 60
    first = content.hash_offsets[row]
    if content.hash_offsets[row + 1] > first:
        block = position // content.hash_block_tokens
        return content.hash_ids[first + block], min((block + 1) * content.hash_block_tokens, prompt)
    return content.prompt_content[row], prompt


@compiled
def mix(hashed, value):  # type: ignore[no-untyped-def]
    """62-bit hash of a chain of values: that of the values so far, and one more. Never 0, which means 'no key'.

    Two lanes below a 31-bit prime: no product overflows, so compiled code and plain Python agree.
    """
    first, second = hashed & _LANE, (hashed >> 31) & _LANE
    low, high = value % _LANE, value // _LANE % _LANE
    first = (first * 48271 + low * 69621 + high * 39373 + 12345) % _LANE
    second = (second * 16807 + low * 630360016 + high * 397204094 + 54321) % _LANE
    return ((second << 31) | first) + 1


@compiled
def block_key(content, row, parent, start, tokens):  # type: ignore[no-untyped-def]
    """Key of the KV block that holds tokens ``start .. start + tokens``, chained to the key of the block before."""
    key = parent
    position = start
    end = start + tokens
    while position < end:
        value, run_end = run_at(content, row, position)
        stop = min(run_end, end)
        while stop < end:  # equal neighbours are one run, wherever the trace's own blocks begin
            following, run_end = run_at(content, row, stop)
            if following != value:
                break
            stop = min(run_end, end)
        key = mix(mix(key, value), stop - position)
        position = stop
    return key


@compiled
def shares_nothing(content, row):  # type: ignore[no-untyped-def]
    """Whether the request's prompt is all its own, so that no other request can have a block of it."""
    if content.hash_offsets[row + 1] > content.hash_offsets[row]:
        return False
    return PRIVATE_CONTENT <= content.prompt_content[row] < OUTPUT_CONTENT


@compiled
def all_share_nothing(content):  # type: ignore[no-untyped-def]
    """Whether that holds for every request."""
    for row in range(content.input_tokens.size):
        if not shares_nothing(content, row):
            return False
    return True


@compiled
def private_key(row, block):  # type: ignore[no-untyped-def]
    """Key of a block of such a request: nothing to hash. A row's blocks are neighbours, rows lie far apart."""
    return ((row + 1) * 2654435761 + block) * 128 + 1


@compiled
def block_keys(content, row, tokens, block_size):  # type: ignore[no-untyped-def]
    """Chained keys of the whole blocks in the first ``tokens`` tokens of a request's prompt and output."""
    alone = shares_nothing(content, row)
    keys = np.empty(tokens // block_size, np.int64)
    key = 1
    for j in range(keys.size):
        key = private_key(row, j) if alone else block_key(content, row, key, j * block_size, block_size)
        keys[j] = key
    return keys


def unshared_content(input_tokens: Ints) -> object:
    """Content columns for requests that share no token."""
    rows = np.arange(input_tokens.size, dtype=np.int64)
    return make_content(
        input_tokens,
        np.zeros(0, np.int64),
        np.zeros(input_tokens.size + 1, np.int64),
        512,
        PRIVATE_CONTENT + rows,
        OUTPUT_CONTENT + rows,
    )
