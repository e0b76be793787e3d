"""The trace itself: its rules when made by hand, selection, statistics."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.errors import TraceError
from simulator.workload import Trace, same_requests
from simulator.workload.trace import describe


def sample(**changes: object) -> Trace:
    columns: dict[str, object] = {
        "arrival_s": [0.0, 1.0, 3.0, 6.0],
        "input_tokens": [10, 600, 1024, 1],
        "output_tokens": [1, 2, 3, 4],
        "request_id": ("a", "b", "c", "d"),
        "hash_ids": [5, 5, 6, 5, 7],
        "hash_offsets": [0, 1, 3, 5, 5],
        "session": [0, 1, 0, -1],
        "session_names": ("x", "y"),
        "turn": [0, 0, 1, -1],
        "think_s": [np.nan, np.nan, 2.0, np.nan],
        "tenant": [2, 0, 2, -1],
        "tenant_names": ("p", "q", "r"),
        "priority": [0, 0, 1, 0],
        **changes,
    }
    return Trace.from_columns(**columns)  # type: ignore[arg-type]


def test_columns_are_typed_and_read_only() -> None:
    trace = sample()
    assert trace.arrival_s.dtype == np.float64
    assert trace.input_tokens.dtype == np.int64
    assert trace.max_output_tokens.tolist() == [-1] * 4
    with pytest.raises(ValueError, match="read-only"):
        trace.arrival_s[0] = 5.0


def test_the_callers_array_stays_writable() -> None:
    mine = np.array([0.0, 1.0])
    Trace.from_columns(mine, [1, 1], [1, 1])
    mine[0] = 0.5


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"arrival_s": [0.0, 2.0, 1.0, 6.0]}, "memory: row 3: field 'arrival_s' is 1, before the 2 of memory: row 2"),
        ({"arrival_s": [0.0, 1.0, float("nan"), 6.0]}, "row 3: field 'arrival_s' is nan"),
        ({"arrival_s": [-1.0, 1.0, 2.0, 6.0]}, "row 1: field 'arrival_s' is -1"),
        ({"input_tokens": [10, 600, 1024, 0]}, "row 4: field 'input_tokens' is 0"),
        ({"output_tokens": [1.5, 2, 3, 4]}, "column 'output_tokens' holds float64"),
        ({"output_tokens": [True] * 4}, "column 'output_tokens' holds bool"),
        ({"output_tokens": [1, 2, 3]}, "column 'output_tokens' has 3 values for 4 requests"),
        ({"output_tokens": [[1, 2, 3, 4]]}, "has 2 dimensions"),
        ({"max_output_tokens": [1, 2, 2, 9]}, "row 3: field 'output_tokens' is 3, more than"),
        ({"max_output_tokens": [0, 2, 3, 9]}, "row 1: field 'max_output_tokens' is 0"),
        ({"hash_offsets": [0, 1, 3, 5]}, "'hash_offsets' must rise"),
        ({"hash_ids": None}, "go together"),
        ({"block_tokens": 16}, "row 2: field 'hash_ids' has 2 ids"),
        ({"block_tokens": 0}, "'block_tokens' is 0"),
        ({"hash_ids": [5, 5, -6, 5, 7]}, "row 2: field 'hash_ids' holds -6"),
        ({"session_names": None}, "'session' and 'session_names' go together"),
        ({"session": [0, 2, 0, -1]}, "'session' holds codes outside"),
        ({"turn": [1, 0, 1, -1]}, "row 3: field 'turn' is 1, not after turn 1 of the same session at memory: row 1"),
        ({"turn": None}, "'think_s' needs 'turn'"),
        ({"session": None, "session_names": None}, "'turn' needs 'session_id'"),
        ({"think_s": [-1.0, np.nan, 2.0, np.nan]}, "row 1: field 'think_s' is -1"),
        ({"request_id": ("a", "b", "a", "d")}, "row 3: field 'request_id' is 'a', already used at memory: row 1"),
        ({"request_id": ("a",)}, "column 'request_id' has 1 values"),
        ({"tenants": [1]}, "unknown column 'tenants' (did you mean 'tenant'?)"),
    ],
)
def test_rules(changes: dict[str, object], expected: str) -> None:
    with pytest.raises(TraceError) as caught:
        sample(**changes)
    assert expected in str(caught.value)


def test_no_requests() -> None:
    with pytest.raises(TraceError, match="holds no requests"):
        Trace.from_columns([], [], [])


def test_select_keeps_what_belongs_to_the_rows() -> None:
    part = sample().select([1, 2])
    assert part.request_id == ("b", "c")
    assert [part.hashes(i).tolist() for i in range(2)] == [[5, 6], [5, 7]]
    assert part.session is not None
    assert part.session.tolist() == [0, 1]
    assert part.session_names == ("y", "x")
    assert part.tenant is not None
    assert part.tenant.tolist() == [0, 1]
    assert part.tenant_names == ("p", "r")


@pytest.mark.parametrize(
    "rows", [slice(1, 3), np.array([False, True, True, False]), [1, 2], [-3, -2], np.array([1, 2])]
)
def test_ways_to_select_agree(rows: object) -> None:
    assert same_requests(sample().select(rows), sample().select([1, 2]))  # type: ignore[arg-type]


def test_select_with_gaps_takes_the_right_blocks() -> None:
    part = sample().select([0, 2])
    assert part.hash_ids is not None
    assert part.hash_ids.tolist() == [5, 5, 7]


@pytest.mark.parametrize(
    "rows", [[], slice(4, 9), np.zeros(4, dtype=bool), [4], [-5], [0.5], np.ones(3, dtype=bool), [1, 0]]
)
def test_bad_selections(rows: object) -> None:
    with pytest.raises(TraceError):
        sample().select(rows)  # type: ignore[arg-type]


def test_with_changes_a_field() -> None:
    assert sample().with_(name="new").name == "new"
    with pytest.raises(TraceError, match="did you mean 'priority'"):
        sample().with_(prioritty=None)


def test_follows_session() -> None:
    assert sample().follows_session().tolist() == [False, False, True, False]
    assert sample().select([2]).follows_session().tolist() == [False]


def test_stats() -> None:
    stats = sample().stats()
    assert stats["requests"] == 4
    assert stats["span_s"] == 6
    assert stats["requests_per_s"] == 0.5
    assert stats["interarrival_cv"] == pytest.approx(np.std([1, 2, 3]) / 2)
    assert stats["input_tokens"]["p50"] == 305
    assert stats["output_tokens"]["max"] == 4
    # Blocks 5 5 6 5 7: two of five were seen before; they are full in the second and third request.
    assert stats["prefix"] == {
        "block_tokens": 512,
        "blocks": 5,
        "unique_blocks": 3,
        "repeated_block_ratio": 0.4,
        "repeated_token_ratio": pytest.approx(1024 / (10 + 600 + 1024)),
    }
    assert stats["sessions"] == {"count": 2, "requests": 3, "longest": 2, "later_turns": 1}
    assert stats["tenants"] == 3
    assert describe(stats).startswith("4 requests, 0.5 requests/s")


def test_stats_of_requests_that_arrive_at_once() -> None:
    stats = Trace.from_columns([2.0, 2.0], [1, 1], [1, 1]).stats()
    assert stats["requests_per_s"] is None
    assert stats["interarrival_cv"] is None
