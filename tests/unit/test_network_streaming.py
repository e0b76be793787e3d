"""Compression, bandwidth over time and the choice of levels, with numbers that a pencil follows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from simulator.errors import TopologyError
from simulator.network.bandwidth import BandwidthTrace, read_bandwidth_trace, steady
from simulator.network.compression import Compression, Ladder, LadderFile, Level, compression_names, named_compression
from simulator.network.streaming import TEXT, Chunk, Context, Streamer, load_context

#: 10 and 5 bytes a token; chunks of 10 tokens; everything within 10 s.
FINE, COARSE = Level("fine", 8.0, 0.01, "good"), Level("coarse", 4.0, 0.02, "poor")
LADDER = Ladder((FINE, COARSE), 10, 10.0, text=False)

LEVEL = {"name": "x", "bits": 2.0, "decode_s_per_token": 0.1, "quality": "good"}


def context(tokens: int, per_token_s: float = 1.0) -> Context:
    return Context(tokens, 10.0, lambda past, new: (new + 0.5 * past) * per_token_s)


def test_the_ways_to_shrink_that_have_names() -> None:
    assert compression_names() == ["none", "fp8", "cachegen"]
    assert named_compression("none") == Compression("none", 1.0, 0.0, 0.0, 1500, "exact", "", None)
    fp8 = named_compression("fp8")
    assert (fp8.name, fp8.ratio, fp8.quality, fp8.source) == ("fp8", 2.0, "KV rounded to 8 bits", "1 byte for 2")
    cachegen = named_compression("cachegen")
    assert (cachegen.name, cachegen.ratio, cachegen.quality) == ("cachegen", 1.0, "by level")
    assert cachegen.source.startswith("chunk_tokens: the paper; deadline_s: default of")
    ladder = cachegen.ladder
    assert ladder is not None and ladder.text
    assert (ladder.chunk_tokens, ladder.deadline_s) == (1500, 2.0)
    assert [(level.name, level.bits) for level in ladder.levels] == [("fine", 3.26), ("medium", 2.26), ("coarse", 1.26)]
    assert {level.decode_s_per_token for level in ladder.levels} == {33e-6}
    assert all(level.quality for level in ladder.levels)


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("chunk_tokens", (1, 10**6), (0, 10**6 + 1, 1.5)),
        ("deadline_s", (1e-9, 10**6), (0.0, -1.0, 10**6 + 1)),
        ("levels", ([LEVEL],), ([], 3)),
        ("sources", ({},), ({"a": 1}, None)),
        ("levels.bits", (1e-9, 32), (0.0, 32.1)),
        ("levels.decode_s_per_token", (0.0, 1), (-1e-9, 1.1)),
        ("levels.name", ("a",), (None, 3)),
        ("levels.quality", ("a",), (None, 3)),
    ],
)
def test_a_ladder_keeps_its_limits(key: str, good: tuple[object, ...], bad: tuple[object, ...]) -> None:
    known = {"chunk_tokens": 5, "deadline_s": 1.0, "levels": [LEVEL], "sources": {"a": "b"}}
    outer, _, inner = key.partition(".")
    for values, right in ((good, True), (bad, False)):
        for value in values:
            made = {**known, outer: [LEVEL | {inner: value}] if inner else value}
            if right:
                LadderFile.model_validate(made)
            else:
                with pytest.raises(ValidationError):
                    LadderFile.model_validate(made)
    with pytest.raises(ValidationError):
        LadderFile.model_validate({name: value for name, value in known.items() if name != outer})


def test_bandwidth_by_stretches() -> None:
    link = BandwidthTrace((1.0, 3.0, 4.0), (10.0, 0.0, 20.0))
    assert link.end_s(5.0, 1.0) == 1.5
    assert link.end_s(20.0, 1.0) == 3.0
    assert link.end_s(30.0, 1.0) == 4.5  # 20, a second of nothing, 10 at 20
    assert link.end_s(5.0, 3.5) == 4.25
    assert link.end_s(10.0, 0.0) == 1.0  # before its first moment: as at that
    assert link.end_s(0.0, 3.2) == 3.2
    assert link.end_s(2.0, 3.0) == 4.1
    assert link.end_s(2.0, 4.0) == 4.1
    assert link.end_s(2.0, 9.0) == 9.1
    assert link.scaled(0.5) == BandwidthTrace((1.0, 3.0, 4.0), (5.0, 0.0, 10.0))
    assert steady(4.0) == BandwidthTrace((0.0,), (4.0,))
    assert BandwidthTrace((0.0,), (0.0,)).end_s(1.0, 0.0) == math.inf
    assert steady(1.0).end_s(0.5, 0.0) == 0.5
    assert BandwidthTrace((0.0, 0.25), (1.0, 0.5)).end_s(0.5, 0.0) == 0.75


def test_files_of_bandwidth(tmp_path: Path) -> None:
    file = tmp_path / "b.csv"
    file.write_text("time_s, gbit_per_s\n\n0, 8\n2.5,16\n")
    assert read_bandwidth_trace(str(file)) == BandwidthTrace((0.0, 2.5), (1e9, 2e9))
    bad = {
        "time_s,gbit_per_s\n0,1,2\n": "line 2: found 0,1,2; needed: two numbers",
        "time_s,gbit_per_s\n0,inf\n": "line 2: found 0,inf; both numbers must be 0 or more",
        "time_s,gbit_per_s\nnan,1\n": "line 2: found nan,1; both numbers must be 0 or more",
        "time_s,gbit_per_s\n-1,1\n": "line 2: found -1,1; both numbers must be 0 or more",
        "time_s,gbit_per_s\n0,1\n2,1\n1.5,1\n": "line 4: time_s 1.5 does not come after 2",
        "time_s,gbit_per_s\n": "the last gbit_per_s must be above 0, or transfers never end",
        "": "line 1: found nothing; needed: time_s,gbit_per_s",
    }
    for text, said in bad.items():
        file.write_text(text)
        with pytest.raises(TopologyError) as error:
            read_bandwidth_trace(file)
        assert str(error.value) == f"{file}: {said}"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TopologyError, match="cannot be read: not text"):
        read_bandwidth_trace(file)
    with pytest.raises(TopologyError, match="cannot be read: No such file or directory"):
        read_bandwidth_trace(tmp_path / "none.csv")


def test_the_finest_level_that_is_in_time() -> None:
    """25 tokens in chunks of 10, 10 and 5. Fine: 10 bytes a token, and 0.01 s of decoding a token."""
    loaded = load_context(LADDER, context(25), steady(50.0), setup_s=0.5)
    assert loaded.chunks == (
        Chunk(10, "fine", 100.0, 0.1),
        Chunk(10, "fine", 100.0, 0.1),
        Chunk(5, "fine", 50.0, 0.05),
    )
    assert loaded.size_bytes == 250.0
    assert loaded.ready_s == pytest.approx(0.5 + 5.0 + 0.05)


@pytest.mark.parametrize(("deadline_s", "level"), [(5.0501, "fine"), (5.0499, "coarse"), (2.60001, "coarse")])
def test_a_level_is_in_time_when_the_last_chunk_is_decoded(deadline_s: float, level: str) -> None:
    """All fine takes 250 bytes at 50 a second and the last 5 tokens' decoding: chunk sizes of the whole are used."""
    streamer = Streamer(LADDER, context(5), 10.0, deadline_s)  # 5 s or 2.5 s of travel, 0.05 s or 0.1 s of decoding
    chunk = streamer.next_chunk(0.0)
    assert chunk is not None and chunk.level == level


@pytest.mark.parametrize(
    ("deadline_s", "level"), [(25.11, "fine"), (25.09, "coarse"), (12.71, "coarse"), (1, "coarse")]
)
def test_of_several_chunks_only_the_last_ones_decoding_shows(deadline_s: float, level: str) -> None:
    """250 bytes at 10 a second, and a chunk of 10 tokens at 0.01 s each; coarse half of that and 0.2 s."""
    chunk = Streamer(LADDER, context(25), 10.0, deadline_s).next_chunk(0.0)
    assert chunk is not None and chunk.level == level


@pytest.mark.parametrize(("deadline_s", "level"), [(22.6, "slow"), (22.4, "quick")])
def test_decoding_that_is_slower_than_the_wire_counts_in_full(deadline_s: float, level: str) -> None:
    """25 tokens of 0.5 s behind the first chunk's 10 s of 25 (2 fifths of the travel)."""
    slow = Ladder((Level("slow", 8.0, 0.5, ""), Level("quick", 8.0, 0.0, "")), 10, 1.0, text=False)
    chunk = Streamer(slow, context(25), 25.0, deadline_s - 6.0).next_chunk(0.0)
    assert chunk is not None and chunk.level == level


def test_too_late_at_any_level_means_the_quickest() -> None:
    chunk = Streamer(LADDER, context(5), 10.0, 1.0).next_chunk(0.0)
    assert chunk is not None and chunk.level == "coarse"
    slow_to_undo = Ladder((FINE, Level("slow", 4.0, 9.0, "")), 10, 1.0, text=False)
    chunk = Streamer(slow_to_undo, context(5), 10.0, 1.0).next_chunk(0.0)
    assert chunk is not None and chunk.level == "fine"


def test_text_goes_first_where_computing_is_in_time() -> None:
    ladder = Ladder((FINE, COARSE), 10, 30.0)
    loaded = load_context(ladder, context(20, 0.5), steady(40.0))
    # 4 bytes a token; the second ten come after the first ten: (10 + 0.5 x 10) x 0.5 s
    assert loaded.chunks == (Chunk(10, TEXT, 40.0, 5.0), Chunk(10, TEXT, 40.0, 7.5))
    assert loaded.ready_s == pytest.approx(1.0 + 5.0 + 7.5)
    late = load_context(Ladder((FINE, COARSE), 10, 7.0), context(20, 0.5), steady(40.0))
    assert {chunk.level for chunk in late.chunks} == {"fine"}
    # to compute all 20 takes 10 s (computed at once) behind the first half of the travel
    assert Streamer(ladder, context(20, 0.5), 40.0, 11.01).next_chunk(0.0).level == TEXT  # type: ignore[union-attr]
    assert Streamer(ladder, context(20, 0.5), 40.0, 10.99).next_chunk(0.0).level == "fine"  # type: ignore[union-attr]


def test_bandwidth_is_what_the_last_chunk_saw_and_texts_tell_none() -> None:
    streamer = Streamer(LADDER, context(40), 1000.0, 10.0)
    first = streamer.next_chunk(0.0)
    assert first is not None and first.level == "fine"
    streamer.arrived(first, 0.0, 5.0)  # 20 bytes a second: 300 bytes more at fine are not there in 5 s
    assert streamer.ready_s == 5.1
    second = streamer.next_chunk(5.0)
    assert second is not None and second.level == "coarse"
    streamer.arrived(Chunk(10, TEXT, 40.0, 3.0), 5.0, 5.1)  # 400 a second, if it counted
    assert streamer.ready_s == pytest.approx(8.1)
    third = streamer.next_chunk(5.1)
    assert third is not None and third.level == "coarse"
    streamer.arrived(Chunk(10, "fine", 100.0, 0.0), 6.0, 6.0)  # in no time: tells nothing either
    assert streamer.ready_s == pytest.approx(8.1)
    last = streamer.next_chunk(6.0)
    assert last is not None and last.level == "coarse"
    assert streamer.next_chunk(6.0) is None


def test_undoing_queues_behind_what_is_not_undone() -> None:
    slow = Ladder((Level("only", 8.0, 1.0, ""),), 10, 100.0, text=False)
    loaded = load_context(slow, context(20), steady(100.0))  # a second of travel, ten of decoding a chunk
    assert loaded.ready_s == pytest.approx(21.0)
    quick_start = load_context(slow, context(20), steady(100.0), bytes_per_s=1.0)
    assert quick_start == loaded
    # what is left behind counts when the next level is chosen
    ladder = Ladder((Level("a", 8.0, 0.1, ""), Level("b", 8.0, 0.0, "")), 10, 6.0, text=False)
    streamer = Streamer(ladder, context(20), 100.0, 6.0)
    streamer.ready_s = 5.5
    chunk = streamer.next_chunk(0.0)
    assert chunk is not None and chunk.level == "b"


def test_a_link_that_is_taken_to_move_nothing() -> None:
    chunk = Streamer(LADDER, context(5), 0.0, 1.0).next_chunk(0.0)
    assert chunk is not None and chunk.level == "fine"  # nothing is in time: the first of equals
    loaded = load_context(LADDER, context(0), steady(1.0))
    assert (loaded.ready_s, loaded.size_bytes, loaded.chunks) == (0.0, 0, ())
