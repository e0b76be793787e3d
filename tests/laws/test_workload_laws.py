"""Laws of traces: what is written is read, selection composes, windows part a trace, draws depend on the seed alone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import TraceError
from simulator.workload import Trace, apply_arrivals, load_trace, parse_arrivals, same_requests, write_trace
from simulator.workload.trace import encode_names
from simulator.workload.window import spread_bins

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    n = draw(st.integers(1, 12))
    gaps = draw(st.lists(st.floats(0, 1e4, allow_subnormal=False), min_size=n, max_size=n))
    outputs = draw(st.lists(st.integers(1, 10**9), min_size=n, max_size=n))
    optional: dict[str, Any] = {}
    if draw(st.booleans()):
        optional["request_id"] = tuple(f"{i}{draw(TEXT)}" for i in range(n))
    if draw(st.booleans()):
        optional["max_output_tokens"] = [o if draw(st.booleans()) else -1 for o in outputs]
        if all(v == -1 for v in optional["max_output_tokens"]):
            del optional["max_output_tokens"]
    inputs = draw(st.lists(st.integers(1, 3000), min_size=n, max_size=n))
    if draw(st.booleans()):
        size = draw(st.integers(1, 700))
        rows = [
            [draw(st.integers(0, 2**63 - 1)) for _ in range(-(-i // size))] if i // size < 40 else [] for i in inputs
        ]
        if any(rows):
            optional["hash_ids"] = np.array([h for r in rows for h in r], dtype=np.int64)
            optional["hash_offsets"] = np.cumsum([0, *map(len, rows)])
            optional["block_tokens"] = size
    if draw(st.booleans()):
        codes, names = encode_names([draw(st.sampled_from(["a", "b", "ü", None])) for _ in range(n)])
        if names:
            optional.update(session=codes, session_names=names)
            if draw(st.booleans()):
                optional["turn"] = np.where(codes < 0, -1, np.arange(n))
                optional["think_s"] = np.where(codes < 0, np.nan, draw(st.floats(0, 100)))
    if draw(st.booleans()):
        codes, names = encode_names([draw(st.none() | TEXT) for _ in range(n)])
        if names:
            optional.update(tenant=codes, tenant_names=names)
    if draw(st.booleans()):
        optional["priority"] = draw(st.lists(st.integers(-(2**62), 2**62), min_size=n, max_size=n))
    return Trace.from_columns(np.cumsum(gaps), inputs, outputs, **optional)


@settings(max_examples=120, deadline=None)
@given(traces(), st.sampled_from([".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"]))
def test_what_is_written_is_read(trace: Trace, ending: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert same_requests(load_trace(write_trace(trace, Path(folder) / f"t{ending}")), trace)


@settings(max_examples=60, deadline=None)
@given(traces(), st.data())
def test_selections_compose(trace: Trace, data: st.DataObject) -> None:
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(trace), max_size=len(trace))))
    if not keep.any():
        keep[0] = True
    part = trace.select(keep)
    begin = data.draw(st.integers(0, len(part) - 1))
    assert same_requests(part.select(slice(begin, None)), trace.select(np.flatnonzero(keep)[begin:]))
    assert same_requests(trace.select(slice(None)).select(keep), part)
    assert part.input_tokens.sum() == trace.input_tokens[keep].sum()


@settings(max_examples=40, deadline=None)
@given(traces(), st.floats(0.001, 5e4))
def test_windows_part_a_trace(trace: Trace, cut_s: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = write_trace(trace, Path(folder) / "t.jsonl")
        kept = 0
        for options in ({"duration_s": cut_s}, {"start_s": cut_s}):
            try:
                kept += len(load_trace(file, **options))  # type: ignore[arg-type]
            except TraceError as error:
                assert "no request arrives from" in str(error)
        assert kept == len(trace)


@settings(max_examples=40, deadline=None)
@given(traces(), st.floats(0.01, 100))
def test_rate_scale_divides_gaps(trace: Trace, scale: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        scaled = load_trace(write_trace(trace, Path(folder) / "t.jsonl"), rate_scale=scale)
    np.testing.assert_allclose(scaled.arrival_s, trace.arrival_s / scale, rtol=1e-12)
    np.testing.assert_array_equal(scaled.output_tokens, trace.output_tokens)


@settings(max_examples=60, deadline=None)
@given(traces(), st.sampled_from(["poisson:3", "gamma:0.2:4", "closed:2", "at-once"]), st.integers(0, 2**32))
def test_arrivals_keep_the_requests(trace: Trace, kind: str, seed: int) -> None:
    offered = apply_arrivals(trace, parse_arrivals(kind), seed)
    assert same_requests(offered, apply_arrivals(trace, parse_arrivals(kind), seed))
    for column in ("input_tokens", "output_tokens", "max_output_tokens"):
        assert sorted(getattr(offered, column).tolist()) == sorted(getattr(trace, column).tolist())
    assert offered.follows_session().sum() == trace.follows_session().sum()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=60), st.floats(0.5, 10))
def test_spreading_keeps_order_bins_and_the_first(bins: list[int], width_s: float) -> None:
    times = np.sort(np.array(bins)) * width_s
    spread = spread_bins(times, width_s)
    assert spread[0] == times[0]
    assert (np.diff(spread) > 0).all()
    assert ((spread >= times) & (spread < times + width_s)).all()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_rubbish_is_refused_in_one_line(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "t"
        file.write_bytes(content)
        with pytest.raises(TraceError) as caught:
            load_trace(file)
    assert "\n" not in str(caught.value)
    assert "\r" not in str(caught.value)


VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["arrival_s", "input_tokens", "output_tokens", "hash_ids", "turn", "session_id"]), VALUES
    )
)
def test_any_json_object_is_a_request_or_one_line(row: dict[str, Any]) -> None:
    import json

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "t"
        file.write_text(json.dumps(row) + "\n", encoding="utf-8")
        try:
            assert len(load_trace(file)) == 1
        except TraceError as error:
            assert "\n" not in str(error)
