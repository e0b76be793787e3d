"""Laws of sending a KV cache chunk by chunk at levels chosen on the way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.assembly import assemble
from simulator.cluster.simulation import run_plan
from simulator.cluster.topology import load_topology
from simulator.errors import TopologyError
from simulator.network.bandwidth import BandwidthTrace, steady
from simulator.network.compression import Ladder, Level, named_compression
from simulator.network.streaming import Context, load_context
from simulator.workload.arrivals import parse_arrivals
from simulator.workload.load import load_trace

GBIT = 1e9 / 8
NUMBERS = 65_536.0  # of KV in a token of Mistral-7B
LAW = settings(deadline=None, max_examples=200, derandomize=True)


def cachegen() -> Ladder:
    ladder = named_compression("cachegen").ladder
    assert ladder is not None
    return ladder


def only(name: str) -> Ladder:
    return replace(cachegen(), levels=tuple(x for x in cachegen().levels if x.name == name), text=False)


def context(tokens: int, recompute_s_per_token: float = 3e-4) -> Context:
    return Context(tokens, NUMBERS, lambda past, new: new * recompute_s_per_token)


@LAW
@given(st.integers(1, 20_000), st.floats(0.05, 200), st.sampled_from(["fine", "medium", "coarse"]))
def test_at_one_level_the_time_is_that_of_a_pipeline(tokens: int, gbit: float, name: str) -> None:
    """Chunks travel one after another; each is decoded behind its own arrival and the one before it."""
    ladder = only(name)
    loaded = load_context(ladder, context(tokens), steady(gbit * GBIT))
    level, ready, sent = ladder.levels[0], 0.0, 0
    while sent < tokens:
        chunk = min(ladder.chunk_tokens, tokens - sent)
        sent += chunk
        ready = max(ready, sent * NUMBERS * level.bits / 8 / (gbit * GBIT)) + chunk * level.decode_s_per_token
    assert loaded.ready_s == pytest.approx(ready, rel=1e-9)
    assert loaded.size_bytes == pytest.approx(tokens * NUMBERS * level.bits / 8)


@LAW
@given(
    st.integers(1, 20_000), st.floats(0.05, 200), st.floats(0.1, 5), st.booleans(), st.sampled_from([1e-5, 3e-4, 1e-2])
)
def test_a_deadline_that_some_level_keeps_is_kept_and_no_finer_level_would_have(
    tokens: int, gbit: float, deadline_s: float, text: bool, recompute: float
) -> None:
    ladder = replace(cachegen(), deadline_s=deadline_s, text=text)
    link, what = steady(gbit * GBIT), context(tokens, recompute)
    adaptive = load_context(ladder, what, link)
    alone = {x.name: load_context(only(x.name), what, link) for x in ladder.levels}
    in_time = [name for name, loaded in alone.items() if loaded.ready_s <= deadline_s - 1e-6]
    travel, last = tokens * 4 / (gbit * GBIT), min(1500, tokens)
    as_text = max(travel + last * recompute, travel * last / tokens + tokens * recompute)
    if in_time or (text and as_text <= deadline_s - 1e-6):
        assert adaptive.ready_s <= deadline_s + 1e-6
    finest = ladder.levels[0]
    assert adaptive.size_bytes <= tokens * NUMBERS * finest.bits / 8 * (1 + 1e-9)
    if in_time and in_time[0] == finest.name and not text:
        assert {chunk.level for chunk in adaptive.chunks} == {finest.name}


@LAW
@given(
    st.lists(st.tuples(st.floats(0.01, 3), st.floats(0, 20)), min_size=1, max_size=8),
    st.floats(0, 5),
    st.floats(0, 1e10),
    st.floats(0, 1),
)
def test_bytes_over_a_link_that_changes_are_the_sum_of_its_stretches(
    steps: list[tuple[float, float]], start: float, size: float, part: float
) -> None:
    times, rates, now = [0.0], [7 * GBIT], 0.0
    for lasts, gbit in steps:
        now += lasts
        times.append(now)
        rates.append(gbit * GBIT)
    rates[-1] = max(rates[-1], GBIT)
    link = BandwidthTrace(tuple(times), tuple(rates))
    middle = link.end_s(size * part, start)
    assert link.end_s(size * (1 - part), middle) == pytest.approx(link.end_s(size, start), rel=1e-9, abs=1e-6)


def test_when_bandwidth_drops_coarser_levels_or_text_follow() -> None:
    drop = BandwidthTrace((0.0, 0.3), (4 * GBIT, 0.15 * GBIT))
    loaded = load_context(replace(cachegen(), text=False, deadline_s=3.0), context(9491), drop)
    levels = [chunk.level for chunk in loaded.chunks]
    assert levels[0] == "fine" and levels[-1] == "coarse"
    with_text = load_context(replace(cachegen(), deadline_s=3.0), context(9491, 4e-4), drop)
    assert with_text.chunks[-1].level == "text" and with_text.ready_s < loaded.ready_s


def test_the_published_sizes_of_mistral_on_longchat() -> None:
    """176 MB where 8-bit KV takes 622 MB (the medium level is made from these two); at 3 Gbit/s 3.2 times as fast."""
    eight = Ladder((Level("8 bit", 8.0, 0.0, ""),), 1500, 1e9, text=False)
    plain, packed = (load_context(x, context(9491), steady(3 * GBIT)) for x in (eight, only("medium")))
    assert plain.size_bytes == pytest.approx(622e6, rel=0.01) and packed.size_bytes == pytest.approx(176e6, rel=0.01)
    assert plain.ready_s / packed.ready_s == pytest.approx(3.2, rel=0.03)


@pytest.mark.parametrize("way", ["mode: pull", "mode: store, store: {gbit_per_s: 10}"])
def test_a_handover_is_streamed_at_the_level_given(way: str) -> None:
    change = f"kv_transfer={{{way}, compression: {{kind: cachegen, level: medium}}}}"
    plan = assemble(load_topology("1p1d", [change, "network.nic_gbit_per_s=10"]))
    trace = load_trace("chat", limit=60)
    result = run_plan(plan, trace, parse_arrivals("poisson:2"), seed=1)
    tokens = int((-(-trace.input_tokens // 16) * 16).sum())
    copies = 1 if "pull" in way else 2  # written, and read
    assert result.network["bytes"] == pytest.approx(copies * tokens * NUMBERS * 2.26 / 8)
    chunks = int((-(-(-(-trace.input_tokens // 16) * 16) // 1500)).sum())
    assert result.network["chunks_by_level"] == {"medium": chunks}


def test_a_tighter_deadline_makes_chunks_coarser() -> None:
    sent = []
    for deadline in ("20", "0.3", "0.05"):
        change = f"kv_transfer={{mode: pull, compression: {{kind: cachegen, text: false, deadline_s: {deadline}}}}}"
        plan = assemble(load_topology("1p1d", [change, "network={kind: ethernet, nic_gbit_per_s: 1}"]))
        sent.append(run_plan(plan, load_trace("chat", limit=60), parse_arrivals("poisson:2"), seed=1).network["bytes"])
    assert sent[0] > sent[1] > sent[2]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("{mode: push, compression: cachegen}", "cachegen sends whole prompts; found mode push, allowed: pull, store"),
        ("{compression: {kind: cachegen, level: mediun}}", "unknown level 'mediun' (did you mean 'medium'?)"),
        ("{compression: {kind: cachegen, ratio: 3}}", "key 'ratio' means nothing for cachegen"),
        ("{compression: {decode_s_per_token: 1e-6}}", "key 'ratio' is missing"),
        ("{compression: {ratio: 3, deadline_s: 1}}", "deadline_s: means nothing for kind custom"),
        ("{compression: fp8, per_block_s: 1e-5}", "means nothing beside kv_transfer.per_block_s"),
    ],
)
def test_what_cannot_be_is_one_line(change: str, says: str) -> None:
    with pytest.raises(TopologyError) as error:
        assemble(load_topology("1p1d", [f"kv_transfer={change}"]))
    assert says in str(error.value) and "\n" not in str(error.value)
