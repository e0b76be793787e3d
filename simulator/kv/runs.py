"""A request's tokens as runs of content ids, hashed page by page: what a radix tree compares."""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.kv.content import SESSION_CONTENT, run_at

#: Content id of an end-of-sequence token. It matters only where a step was already planned behind it.
END_CONTENT = 1 << 47
NO_END = 1 << 60
_LANE = (1 << 31) - 1  # hashes are two numbers below this prime: no product overflows, compiled or not


@compiled
def chain(hashed, value):  # type: ignore[no-untyped-def]
    """62-bit hash of a chain of values: that of the values so far, and one more."""
    first, second = hashed & _LANE, hashed >> 31
    low, high = value % _LANE, value // _LANE % _LANE
    first = (first * 48271 + low * 69621 + high * 39373 + 12345) % _LANE
    second = (second * 16807 + low * 630360016 + high * 397204094 + 54321) % _LANE
    return (second << 31) | first


@compiled
def end_position(content, row, tokens, target):  # type: ignore[no-untyped-def]
    """Where a sequence of ``tokens`` tokens holds its end of sequence: behind ``target`` outputs, or nowhere.

    In a session the next turn's prompt holds the same token, so nothing sets it apart there.
    """
    at = content.input_tokens[row] + target - 1
    if at >= tokens or content.output_content[row] >= SESSION_CONTENT:
        return NO_END
    return at


@compiled
def token_run(content, row, end_at, position):  # type: ignore[no-untyped-def]
    """Content id of the token at ``position`` and where its run ends."""
    if position >= end_at:
        return END_CONTENT, NO_END
    value, stop = run_at(content, row, position)
    return value, min(stop, end_at)


@compiled
def page_key(content, page, row, end_at, start):  # type: ignore[no-untyped-def]
    """What the page that begins at ``start`` is known by."""
    value, stop = token_run(content, row, end_at, start)
    end = start + page
    if stop >= end:
        return chain(value, page)
    key, position = 1, start
    while position < end:
        run_start = position
        position = min(stop, end)
        while position < end:  # equal neighbours are one run
            following, stop = token_run(content, row, end_at, position)
            if following != value:
                break
            position = min(stop, end)
        key = chain(chain(key, value), position - run_start)
        if position < end:
            value, stop = token_run(content, row, end_at, position)
    if position - start == page and run_start == start:
        return chain(value, page)
    return key
