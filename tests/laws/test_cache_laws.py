"""Caches below the engines: what they keep, what they find, and what they cost."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.cluster.assembly import assemble
from simulator.cluster.cache.plan import host_of
from simulator.cluster.result import COMPLETED
from simulator.cluster.run import Cluster, RunOptions
from simulator.cluster.simulation import run_plan
from simulator.cluster.topology import load_topology
from simulator.errors import TopologyError
from simulator.files import dumps
from simulator.kv.eviction import PageCache
from simulator.kv.reuse import reuse
from simulator.metrics.summary import summarise
from simulator.workload.arrivals import Arrivals, parse_arrivals
from simulator.workload.load import load_trace
from simulator.workload.trace import Trace

AFFINE = {"kind": "affine", "base_s": 0.01, "per_token_s": 1e-4, "per_context_token_s": 1e-8}
EASY = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

accesses = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=120)


class PlainLru:
    """A list, the least recently used page first."""

    def __init__(self, pages):
        self.pages, self.held = pages, []

    def add(self, key):
        if key in self.held:
            self.held.remove(key)
        elif len(self.held) == self.pages:
            self.held.pop(0)
        self.held.append(key)


@given(accesses, st.integers(1, 8))
def test_lru_is_a_plain_list(keys, pages):
    mine, plain = PageCache(pages, "lru"), PlainLru(pages)
    for key, depth in keys:
        assert (key in mine) == (key in plain.held)
        assert mine.add(key, depth)
        plain.add(key)
        assert sorted(plain.held) == [k for k in range(13) if k in mine]


@given(accesses, st.integers(1, 8))
def test_lfu_lets_go_of_the_least_used(keys, pages):
    mine = PageCache(pages, "lfu")
    uses: Counter[int] = Counter()
    for key, depth in keys:
        before = {k for k in range(13) if k in mine}
        mine.add(key, depth)
        gone = before - {k for k in range(13) if k in mine}
        for victim in gone:
            assert uses[victim] == min(uses[k] for k in before)
            del uses[victim]
        uses[key] += 1
        assert len(mine) <= pages


@given(accesses, st.integers(1, 8))
def test_length_aware_lets_go_of_the_deepest(keys, pages):
    mine, depths = PageCache(pages, "length_aware"), {}
    for key, _ in keys:
        depth = key // 3
        before = {k for k in range(13) if k in mine}
        mine.add(key, depth)
        for victim in before - {k for k in range(13) if k in mine}:
            assert depths[victim] == max(depths[k] for k in before)
        depths[key] = depth


@given(accesses, st.integers(1, 8), st.sampled_from(["lru", "lfu", "length_aware"]))
def test_pinned_pages_stay_and_capacity_holds(keys, pages, policy):
    mine = PageCache(pages, policy)
    pinned = set()
    for key, depth in keys:
        mine.add(key, depth)
        if depth == 3 and key in mine and key not in pinned:
            mine.pin(key)
            pinned.add(key)
        assert len(mine) <= pages
        assert all(k in mine for k in pinned)
    for key in pinned:
        mine.unpin(key)
    for fresh in range(100, 100 + pages):
        assert mine.add(fresh, 0)


@given(accesses, st.integers(1, 7))
def test_what_a_small_lru_holds_a_larger_one_holds_too(keys, pages):
    small, large = PageCache(pages, "lru"), PageCache(pages + 1, "lru")
    for key, depth in keys:
        small.add(key, depth)
        large.add(key, depth)
        assert all(k in large for k in range(13) if k in small)


@st.composite
def traces(draw, sessions=True):
    """Prompts that share prefixes in a small tree, some of them private."""
    rows = draw(st.lists(st.tuples(st.floats(0, 0.2), st.integers(0, 3), st.integers(1, 700), st.integers(1, 12)),
                         min_size=2, max_size=25))  # fmt: skip
    gaps, family, prompts, outputs = zip(*rows, strict=True)
    ids = [[10 * f + j for j in range(-(-p // 128))] if f else [] for f, p in zip(family, prompts, strict=True)]
    return Trace.from_columns(
        np.cumsum(gaps), prompts, outputs,
        hash_ids=np.array([i for row in ids for i in row], np.int64),
        hash_offsets=np.cumsum([0, *map(len, ids)]).astype(np.int64), block_tokens=128,
    )  # fmt: skip


TRT = {"profile": "tensorrt-llm", "max_num_tokens": 256, "tokens_per_block": 16, "enable_chunked_prefill": True}


def topology(roles, cache, blocks=64, **parts):
    pools = [
        {"name": role, "role": role, "workers": count, "step_time": AFFINE, "kv_blocks": blocks * (8 if role == "decode" else 1)}
        for role, count in roles.items()
    ]  # fmt: skip
    values = {"name": "made", "engine": {"profile": "vllm", "max_num_batched_tokens": 256}, "pools": pools}
    values["kv_transfer"] = {"setup_s": 0.001, "per_block_s": 1e-5}
    return load_topology(values | {"cache": cache} | parts)


HOST = {"gib": 0.5, "gbyte_per_s": 20.0}
SSD = {"gib": 1.0, "gbyte_per_s": 5.0, "setup_s": 1e-4}
POOL = {"gib": 4.0, "gbyte_per_s": 10.0}
CACHES = [
    {"host": HOST},
    {"host": {"gib": 0.02, "gbyte_per_s": 20.0, "policy": "lfu"}, "ssd": {**SSD, "policy": "length_aware"}},
    {"host": {"gib": 0.02, "gbyte_per_s": 20.0}, "ssd": SSD, "write": "evict"},
    {"ssd": {**SSD, "gib": 0.05}},
]
COMMON = {"block_tokens": 64, "bytes_per_token": 100_000.0}


@pytest.mark.parametrize("engine", [{}, {"engine": TRT}], ids=["vllm", "tensorrt-llm"])
@pytest.mark.parametrize("roles", [{"colocated": 2}, {"prefill": 2, "decode": 1}], ids=str)
@EASY
@given(traces(), st.sampled_from(CACHES), st.booleans())
def test_tokens_are_found_once_or_computed_and_capacity_holds(roles, engine, trace, cache, macro):
    plan = assemble(topology(roles, COMMON | cache, **engine))
    cluster = Cluster(plan, trace, Arrivals(), RunOptions(macro=macro))
    cluster.run()
    assert (cluster.state == COMPLETED).all()
    assert cluster.caches is not None
    cached, prompts = cluster.desk.cached_tokens, trace.input_tokens
    loaded = sum(cluster.caches.columns.tokens.values())
    assert (loaded <= cached).all()
    assert (cached < prompts).all()
    if not cluster.desk.preemptions.any():
        computed = sum(w.engine.totals().prefill_tokens for w, p in zip(cluster.workers, plan.workers, strict=True)
                       if p.role != "decode")  # fmt: skip
        assert computed == int((prompts - cached).sum())
    cluster.caches.shelves.look(float("inf"))
    for levels in cluster.caches.shelves.levels:
        for level in levels:
            assert level.cache.peak <= level.cache.pages
            assert not level.incoming
    for worker in cluster.workers:
        load = worker.engine.load()
        assert (load.running, load.waiting, load.holding, load.pending_prompt_tokens) == (0, 0, 0, 0)
        assert load.free_blocks == load.blocks


@EASY
@given(traces(), st.sampled_from(CACHES))
def test_parts_add_up_and_the_same_seed_gives_the_same_bytes(trace, cache):
    plan = assemble(topology({"colocated": 2}, COMMON | cache))
    runs = [run_plan(plan, trace, Arrivals(), seed=3) for _ in range(2)]
    record = runs[0].record
    parts = sum(getattr(record, name) for name in vars(record) if name.startswith("part_"))
    np.testing.assert_allclose(parts, record.first_token_s - record.arrival_s, atol=1e-9)
    assert (record.part_queue_s > -1e-9).all()
    first, second = (dumps(summarise(run)) for run in runs)
    assert first == second


def chain(requests, blocks, families=2, gap_s=2.0):
    """Requests of alternating families: ``blocks`` blocks that a family shares, and 64 tokens of their own."""
    own = np.arange(requests) + 10_000
    shared = 1000 * (np.arange(requests) % families)
    ids = np.concatenate([[*(base + np.arange(blocks)), mine] for base, mine in zip(shared, own, strict=True)])
    return Trace.from_columns(
        np.arange(requests) * gap_s, np.full(requests, blocks * 128 + 64), np.full(requests, 2),
        hash_ids=ids, hash_offsets=np.arange(requests + 1) * (blocks + 1), block_tokens=128,
    )  # fmt: skip


def test_a_load_takes_what_its_bytes_take_and_spares_the_prefill():
    """HBM holds one prompt at a time, host memory both families: from the third request on the shared part is loaded."""
    plan = assemble(topology({"colocated": 1}, COMMON | {"host": {**HOST, "setup_s": 0.002}}, blocks=37))
    record = run_plan(plan, chain(6, 4), Arrivals()).record
    assert record.loaded_tokens["host"].tolist() == [0, 0, 512, 512, 512, 512]
    np.testing.assert_allclose(record.part_cache_load_s[2:], 0.002 + 512 * 100_000 / 20e9, atol=1e-9)
    computing = 3 * 0.01 + 1e-4 * 576  # 256 tokens a step, each over what is computed already
    past = 1e-8 * (0 + 256 + 512)
    np.testing.assert_allclose(record.part_prefill_s[:2], computing + past, atol=1e-9)
    np.testing.assert_allclose(record.part_prefill_s[2:], 0.01 + 1e-4 * 64 + 1e-8 * 512, atol=1e-9)


@pytest.mark.parametrize("engine", [{}, {"engine": TRT}], ids=["vllm", "tensorrt-llm"])
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_more_cache_never_slows_the_mean_first_token(seed, engine):
    """A tree of prompts, host memory from nothing to all: mean TTFT falls, but for noise of one per cent."""
    rng = np.random.default_rng(seed)
    families, blocks = rng.zipf(1.4, 200) % 24, rng.integers(2, 9, 200)
    ids = np.concatenate([1000 * f + np.arange(b) for f, b in zip(families, blocks, strict=True)])
    offsets = np.concatenate([[0], np.cumsum(blocks)])
    arrivals = np.cumsum(rng.exponential(0.2, 200))
    trace = Trace.from_columns(
        arrivals, blocks * 128, np.full(200, 4), hash_ids=ids, hash_offsets=offsets, block_tokens=128
    )
    means = []
    for gib in (0.001, 0.1, 0.2, 0.4, 0.8, 1.6):
        plan = assemble(topology({"colocated": 1}, COMMON | {"host": {**HOST, "gib": gib}}, blocks=140, **engine))
        record = run_plan(plan, trace, Arrivals()).record
        means.append(float((record.first_token_s - record.arrival_s).mean()))
    assert all(later <= 1.01 * before for before, later in itertools.pairwise(means))
    assert means[-1] < 0.7 * means[0]


@pytest.mark.parametrize("cache", [{"host": HOST, "pool": {"of": "hosts"}}, {"pool": POOL}], ids=["hosts", "store"])
def test_what_one_worker_computed_another_loads_from_the_pool(cache):
    """Round robin over two workers: with a pool the second finds what the first has left."""
    parts = {"routing": {"colocated": "round_robin"}, "network": {"kind": "rdma"}}
    pools = [{"name": "c", "role": "colocated", "workers": 2, "gpu": "h100_sxm", "step_time": AFFINE, "kv_blocks": 200}]
    values = {"name": "made", "engine": "vllm", "pools": pools, "cache": COMMON | cache} | parts
    record = run_plan(assemble(load_topology(values)), chain(8, 4, families=1), Arrivals()).record
    assert record.loaded_tokens["pool"].tolist() == [0, 512, 0, 0, 0, 0, 0, 0]
    assert record.cached_tokens.tolist() == [0, 512, 512, 512, 512, 512, 512, 512]


def test_loads_share_the_card_with_handovers():
    """The second worker fetches a prompt from the first one's host while that hands another one over by the same card:
    the handover takes twice as long, and the fetch as much longer as the handover would have taken alone."""
    pools = [
        {"name": "p", "role": "prefill", "workers": 2, "gpu": "h100_sxm"},
        {"name": "d", "role": "decode", "workers": 1, "gpu": "h100_sxm"},
    ]
    values = {
        "name": "made", "model": "llama-3.1-8b", "engine": "vllm", "pools": pools, "routing": {"prefill": "round_robin"},
        "network": {"kind": "rdma", "nic_gbit_per_s": 25.0, "nics_per_node": 8}, "kv_transfer": {"mode": "pull"},
        "cache": {"block_tokens": 64, "host": {"gib": 64.0}, "pool": {"of": "hosts"}},
    }  # fmt: skip
    plan = assemble(load_topology(values))
    assert plan.cache is not None
    path = plan.cache.network.paths[
        host_of(0, len(plan.workers)), 1
    ]  # from the first worker's host memory to the second
    alone_s = plan.cache.tiers["pool"].setup_s + 16384 * 131072 / path.alone_bytes_per_s(plan.cache.network.links)
    runs = []
    for third_s in (50.0, 5.1):
        ids = np.concatenate([np.arange(32), np.arange(33), 5000 + np.arange(4)])
        trace = Trace.from_columns(
            [0.0, 5.0, third_s], [16384, 16385, 2048], [4, 4, 4],
            hash_ids=ids, hash_offsets=np.array([0, 32, 65, 69]), block_tokens=512,
        )  # fmt: skip
        record = run_plan(plan, trace, Arrivals()).record
        assert record.loaded_tokens["pool"].tolist() == [0, 16384, 0]
        runs.append((float(record.part_cache_load_s[1]), float(record.part_kv_transfer_s[2])))
    (load_alone, transfer_alone), (load_s, transfer_s) = runs
    assert load_alone == pytest.approx(alone_s, rel=1e-9)
    assert transfer_s == pytest.approx(2 * transfer_alone, rel=0.05)
    assert load_s - load_alone == pytest.approx(transfer_alone, rel=0.05)


@pytest.mark.parametrize("roles", [{"colocated": 1}, {"prefill": 1, "decode": 1}], ids=str)
def test_later_turns_of_a_session_find_the_earlier_ones(roles):
    """Closed loop of sessions with think time: turn k + 1 begins with prompt and output of turn k.

    HBM is large enough for everything. Colocated, a turn finds whole blocks of the earlier prompt and all outputs but
    the last token; with a prefill worker only the earlier prompt.
    """
    turns, fresh, output = 4, 200, 33
    lengths = [fresh + k * (fresh + output) for k in range(turns)]
    sessions = 3
    trace = Trace.from_columns(
        np.repeat(np.arange(sessions) * 0.1, turns), np.tile(lengths, sessions), np.full(sessions * turns, output),
        session=np.repeat(np.arange(sessions), turns), session_names=("a", "b", "c"),
        turn=np.tile(np.arange(turns), sessions), think_s=np.full(sessions * turns, 2.0),
    )  # fmt: skip
    cache = COMMON | {"host": {**HOST, "gib": 8.0}}
    result = run_plan(assemble(topology(roles, cache, blocks=2000)), trace, parse_arrivals("closed:3"))
    record = result.record
    assert (record.state == COMPLETED).all()
    seen = [0] + [before + (output - 1 if "colocated" in roles else 0) for before in lengths[:-1]]
    expected = [tokens // 16 * 16 for tokens in seen]
    assert record.cached_tokens.reshape(sessions, turns).tolist() == [expected] * sessions
    starts, ends = record.arrival_s.reshape(sessions, turns), record.last_token_s.reshape(sessions, turns)
    np.testing.assert_allclose(starts[:, 1:] - ends[:, :-1], 2.0, atol=0.02)


@given(traces())
@EASY
def test_reuse_grows_with_the_pool_and_ends_at_all_that_repeats(trace):
    if trace.hash_ids is None or not trace.hash_ids.size:
        return
    ratios = [reuse(trace, size * 128).token_ratio for size in (1, 4, 16, 64, 256)]
    assert ratios == sorted(ratios)
    endless = reuse(trace)
    assert ratios[-1] <= endless.token_ratio
    assert endless.hit_blocks == len(trace.hash_ids) - len(np.unique(trace.hash_ids))


PUBLISHED = {  # Mooncake (FAST 2025): blocks found of those asked for, read off a figure; tokens, from the traces
    "conversation": ((3e6, 0.136, 0.138), (10e6, 0.285, 0.291), (np.inf, 0.366, 0.374)),
    "synthetic": ((3e6, 0.309, 0.315), (10e6, 0.567, 0.577), (np.inf, 0.640, 0.651)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_hit_ratios_of_one_lru_pool(name):
    folder = Path(os.environ.get("SIMULATOR_DATA", ".")) / "traces" / "mooncake_fast25"
    file = folder / f"{name}_trace.jsonl.gz"
    if not file.is_file():
        pytest.skip("SIMULATOR_DATA holds no Mooncake traces")
    trace = load_trace(file)
    for tokens, of_blocks, of_tokens in PUBLISHED[name]:
        found = reuse(trace, tokens)
        assert found.block_ratio == pytest.approx(of_blocks, abs=0.001)
        assert found.token_ratio == pytest.approx(of_tokens, abs=0.001)


BAD = [
    ({}, "cache: no tier is given; allowed: host, ssd, pool"),
    ({"hosts": HOST}, "(did you mean 'host'?)"),
    ({"host": {"gib": 1.0, "polcy": "lru"}}, "(did you mean 'policy'?)"),
    ({"host": {"gib": 1.0, "policy": "lur"}}, "cache.host.policy: 'lur' is not allowed (did you mean 'lru'?)"),
    ({"host": {"gib": 1.0}}, "cache.host: key 'gbyte_per_s' is missing"),
    ({"host": HOST, "ssd": {"gib": 1.0}}, "cache.ssd: key 'gbyte_per_s' is missing"),
    ({"host": HOST, "block_tokens": 40}, "cache.block_tokens: 40; needed: a multiple of the engines' block size"),
    ({"pool": {"of": "hosts"}}, "cache: key 'host' is missing"),
    ({"pool": {"gbyte_per_s": 1.0}}, "cache.pool: key 'gib' is missing"),
    ({"host": HOST, "write": "back"}, "cache.write: 'back' is not allowed"),
]


@pytest.mark.parametrize(("cache", "said"), BAD, ids=lambda value: str(value)[:50])
def test_what_cannot_be_used_is_said_in_one_line(cache, said):
    with pytest.raises(TopologyError) as error:
        assemble(topology({"colocated": 1}, {"bytes_per_token": 1000.0, "block_tokens": 64} | cache))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_engines_that_cannot_load_are_refused():
    values = {
        "name": "made", "engine": "sglang", "cache": COMMON | {"host": HOST},
        "pools": [{"name": "c", "role": "colocated", "step_time": AFFINE, "kv_blocks": 100}],
    }  # fmt: skip
    with pytest.raises(TopologyError, match="sglang engines cannot load from caches below"):
        assemble(load_topology(values))
