"""Engines before anything has come: every column of an idle one, slots handed out again, and what grows on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_books import books, look, put
from engine_play import BASE
from test_engine_corners import content_of

from simulator.cost.table import affine_cost
from simulator.engine import rules
from simulator.engine import state as shared
from simulator.engine.blocks import close_table, key_of, open_table
from simulator.engine.columns import GAP_BINS, MAX_SAMPLES, NUMBERS, RING, SLOT_FLOATS, SLOT_INTS
from simulator.engine.engine import Engine, EngineSpec, Load
from simulator.engine.sglang import columns as sglang_columns
from simulator.engine.sglang import state as sglang
from simulator.engine.state import DeskColumns
from simulator.kv.content import private_key

NEVER = 1e300
ROWS = 300
SLOTS = 64


def idle(policy: str, role: str = "colocated", blocks: int = 400, **settings: Any) -> Any:
    """State of an engine to which nothing has come."""
    more = {name: settings.pop(name) for name in ("logging", "macro") if name in settings}
    spec = EngineSpec(policy, role, BASE[policy] | settings, blocks, affine_cost(1.0), **more)
    return Engine(spec, content_of([16] * ROWS, [[]] * ROWS), DeskColumns(ROWS).record).state


def nothing_but(names: Any, state: Any, **others: Any) -> None:
    """All these numbers are 0 but those that are named."""
    found = vars(books(state, " ".join(names)))
    assert found == dict.fromkeys(names, 0) | others


@pytest.mark.parametrize("policy", [name for name in BASE if name != "sglang"])
def test_an_idle_engine_has_nothing_anywhere(policy: str) -> None:
    e = idle(policy, "prefill" if policy == "distserve" else "colocated")
    nothing_but(NUMBERS, e, plan_at_s=NEVER, previous_end_s=-1.0, sample_every_s=0.01, free_slots=SLOTS)
    assert (look(e, "pool.free"), look(e, "pool.blocks"), look(e, "left.blank")) == (400, 400, 400)
    arrays = vars(books(e, " ".join([*SLOT_INTS, *SLOT_FLOATS])))
    assert {name: (values.size, values.any()) for name, values in arrays.items()} == dict.fromkeys(
        arrays, (SLOTS, False)
    )
    assert look(e, "free_slot").tolist() == list(range(SLOTS))[::-1]
    assert look(e, "bucket_head").tolist() == [-1] * 16
    zeros = vars(books(e, "phase_count stream_phase stream_end_s gap_counts batch_end_s running waiting reports"))
    assert not any(values.any() for values in zeros.values())
    sizes = [zeros[name].size for name in ("phase_count", "stream_phase", "stream_end_s", "gap_counts", "batch_end_s")]
    assert sizes == [16, 1, 2, GAP_BINS, RING]
    assert look(e, "sample_s").size == MAX_SAMPLES


def test_an_idle_sglang_engine_has_nothing_anywhere() -> None:
    e = idle("sglang", page_size=4, schedule_conservativeness=0.5)
    others = {
        "plan_at_s": NEVER,
        "posting_until_s": -NEVER,
        "previous_end_s": -1.0,
        "sample_every_s": 0.01,
        "free_slots": SLOTS,
        "chunked": -1,
    }
    others |= {"ratio": pytest.approx(0.35), "free": 1600, "free_rows": 6, "new_chunked": -1, "lives_count": -1}
    others |= {"round_end": 1600}
    nothing_but(sglang_columns.NUMBERS, e, **others)
    names = [*sglang_columns.SLOT_INTS, *sglang_columns.SLOT_FLOATS]
    arrays = vars(books(e, " ".join(names)))
    assert {name: (values.size, values.any()) for name, values in arrays.items()} == dict.fromkeys(
        arrays, (SLOTS, False)
    )
    assert look(e, "free_slot").tolist() == list(range(SLOTS))[::-1]
    rings = vars(books(e, "batch_end_s batch_decodes batch_tokens batch_firsts batch_leaving batch_joined"))
    assert {values.size for values in rings.values()} == {sglang_columns.RING}
    assert look(e, "phase_count").tolist() == [0] * 4
    assert (look(e, "sample_s").size, look(e, "gap_counts").size) == (MAX_SAMPLES, GAP_BINS)


@pytest.mark.parametrize(
    ("policy", "role", "passes"),
    [
        ("vllm-v1", "decode", False),
        ("vllm-v0", "colocated", False),
        ("tensorrt-llm", "decode", True),
        ("distserve", "decode", True),
        ("splitwise", "decode", True),
        ("sglang", "colocated", True),
    ],
)
def test_what_the_cluster_knows_of_an_engine(policy: str, role: str, passes: bool) -> None:
    spec = EngineSpec(policy, role, BASE[policy] | {"enable_chunked_prefill": False}, 40, affine_cost(1.0))
    made = Engine(spec, content_of([16], [[]]), DeskColumns(1).record)
    assert (made.wake_s, made.seen_s, made.block_size) == (float("inf"), -1.0, 16)
    assert made.passes_first_token == passes and not made.withdraw(0, 0.0)
    assert made.advance(3.0) is None and (made.seen_s, made.wake_s) == (3.0, NEVER)
    assert tuple(made.load()) == (0, 0, 0, 40, 40, 0) and made.load().requests == 0
    assert tuple(made.totals()) == (0,) * 10
    assert Load(1, 20, 300, 0, 0, 0).requests == 321
    assert [len(column) for column in made.series()] == [0, 0, 0, 0, GAP_BINS]
    assert [len(column) for column in made.step_log()] == [0] * 5
    assert [len(column) for column in made.take_news()] == [0] * 6


def test_block_tables_are_there_with_a_prefix_cache_only() -> None:
    plain, cached = idle("vllm-v1"), idle("vllm-v0", prefix_caching=True)
    assert [look(e, "block_table").shape for e in (plain, cached)] == [(1, 1), (64, 256)]
    assert [look(e, "block_keys").shape for e in (plain, cached)] == [(1, 1), (64, 256)]
    assert look(cached, "free_table").tolist() == [64, *range(63, -1, -1)]
    assert [look(e, "log_row").size for e in (plain, idle("vllm-v1", logging=True))] == [1, 1024]


def test_a_slot_handed_out_again_knows_nothing_of_its_last_request() -> None:
    e = idle("vllm-v1")
    names = (*SLOT_INTS, *SLOT_FLOATS)
    for values in vars(books(e, " ".join(names))).values():
        values[:] = 77
    s = shared.new_slot(e, 5, 30, 9, shared.DECODE)
    assert s == 0 and look(e, "free_slots") == SLOTS - 1
    found = {name: values[s] for name, values in vars(books(e, " ".join(names))).items()}
    expected = {"row": 5, "status": shared.WAITING, "prompt": 30, "target": 9, "part": shared.DECODE}
    expected |= dict.fromkeys(
        [
            "received",
            "computed",
            "remote",
            "pledge",
            "passed",
            "outside",
            "rank",
            "arrival",
            "held_blocks",
            "registered",
        ],
        0,
    )
    expected |= {"absent_batch": -1, "stale_batch": -1, "table": -1, "hit": -1, "times_preempted": 0, "token_sum": 0.0}
    assert {name: found[name] for name in expected} == expected
    assert look(e, "row")[1] == 77
    shared.free_slot(e, s)
    assert (look(e, "status")[s], look(e, "free_slots"), look(e, "free_slot")[SLOTS - 1]) == (shared.FREE, SLOTS, 0)


def test_a_slot_of_sglang_handed_out_again_knows_nothing_of_its_last_request() -> None:
    e = idle("sglang")
    names = (*sglang_columns.SLOT_INTS, *sglang_columns.SLOT_FLOATS)
    for values in vars(books(e, " ".join(names))).values():
        values[:] = 77
    s = sglang.new_slot(e, 5, 30, 9)
    found = {name: values[s] for name, values in vars(books(e, " ".join(names))).items()}
    expected = {"row": 5, "status": sglang.WAITING, "prompt": 30, "target": 9, "limit": 9, "final": 9, "fill": 30}
    zero = [
        "outputs",
        "prefix",
        "extend_end",
        "protected",
        "committed",
        "matched",
        "times_preempted",
        "holds",
        "started",
    ]
    expected |= dict.fromkeys(zero, 0) | {"node": -1, "hit": -1, "token_sum": 0.0, "last_token": 0.0}
    assert {name: found[name] for name in expected} == expected
    assert look(e, "free_slots") == SLOTS - 1


@pytest.mark.parametrize(
    ("pool", "context", "prompt", "target", "allowed", "limit", "final"),
    [
        (400, 1000, 100, 50, -1, 50, 50),  # nothing said: as long as it will be
        (400, 1000, 100, 50, 80, 80, 50),
        (400, 1000, 100, 50, 20, 20, 20),
        (400, 120, 100, 50, -1, 120 - 1 - 100 - 1, 18),  # prompt and output fit the context, but for two tokens
        (160, 1000, 90, 80, -1, 160 - 96 - 16 - 1, 47),  # a page is kept free beside whole pages of the prompt
        (112, 1000, 90, 50, -1, 0, 1),
        (400, 100, 99, 50, -1, 0, 1),  # a token comes in any case
    ],
)
def test_what_an_sglang_request_may_make_is_cut_to_what_fits(
    pool: int, context: int, prompt: int, target: int, allowed: int, limit: int, final: int
) -> None:
    spec = EngineSpec(
        "sglang",
        "colocated",
        BASE["sglang"] | {"context_length": context, "ignore_eos": False},
        pool // 16,
        affine_cost(1.0),
        extra={"max_output_tokens": np.array([allowed])},
    )
    e = Engine(spec, content_of([prompt] * 2, [[], []]), DeskColumns(2).record).state
    s = sglang.new_slot(e, 0, prompt, target)
    assert (look(e, "limit")[s], look(e, "final")[s]) == (limit, final)
    t = sglang.new_slot(e, 1, prompt, 3)  # the limits do not reach this row
    assert look(e, "limit")[t] == min(3, limit)


def filled(e: Any, names: Any) -> dict[str, Any]:
    """Give every entry of these arrays a value of its own; returns copies."""
    kept = {}
    for i, name in enumerate(names):
        values = look(e, name)
        values[...] = (np.arange(values.size) + 1000 * i).reshape(values.shape)
        kept[name] = values.copy()
    return kept


def doubled(e: Any, before: dict[str, Any]) -> None:
    """Each has twice the room in its last direction, what it had in front, and nothing behind."""
    for name, old in before.items():
        new = look(e, name)
        assert new.shape == (*old.shape[:-1], 2 * old.shape[-1]), name
        assert (new[..., : old.shape[-1]] == old).all() and not new[..., old.shape[-1] :].any(), name


def test_more_slots_keep_all_that_was_there() -> None:
    e = idle("vllm-v1")
    lists = [
        "running",
        "holding",
        "reports",
        "unsent",
        "late",
        "firsts",
        "leaving",
        "stale",
        "absent",
        "batch_report",
        "made_slot",
        "made_tokens",
    ]
    before = filled(e, [*SLOT_INTS, *SLOT_FLOATS, *lists])
    look(e, "waiting")[:] = np.arange(SLOTS)
    put(e, waiting_head=60, waiting_count=10, free_slots=0)
    s = shared.new_slot(e, 1, 2, 3, 0)
    assert s == SLOTS
    for name in ("row", "prompt", "target", "status", "absent_batch", "stale_batch", "table", "hit"):
        look(e, name)[s] = 0
    doubled(e, before)
    waiting = look(e, "waiting")
    assert (waiting.size, look(e, "waiting_head"), look(e, "waiting_count")) == (2 * SLOTS, 0, 10)
    assert waiting[:10].tolist() == [60, 61, 62, 63, 0, 1, 2, 3, 4, 5] and not waiting[10:].any()
    assert look(e, "free_slots") == SLOTS - 1
    assert look(e, "free_slot")[: SLOTS - 1].tolist() == list(range(2 * SLOTS - 1, SLOTS, -1))
    assert look(e, "free_slot").size == 2 * SLOTS


def test_more_slots_of_sglang_keep_all_that_was_there() -> None:
    e = idle("sglang")
    lists = [
        "running",
        "last",
        "fresh",
        "scratch",
        "holding",
        "ready",
        "retracted",
        "admitted",
        "firsts",
        "leaving",
        "joined",
    ]
    before = filled(e, [*sglang_columns.SLOT_INTS, *sglang_columns.SLOT_FLOATS, *lists])
    put(e, free_slots=0)
    sglang.grow_slots(e)
    doubled(e, before)
    assert look(e, "free_slots") == SLOTS
    assert look(e, "free_slot")[:SLOTS].tolist() == list(range(2 * SLOTS - 1, SLOTS - 1, -1))


def test_more_block_tables_keep_those_there_are() -> None:
    """65 requests hold a table each; one longer than a table makes all of them wider, twice."""
    e = idle("vllm-v0", prefix_caching=True)
    slots = [shared.new_slot(e, row, 16, 2, 0) for row in range(SLOTS)]
    for s in slots:
        open_table(e, s)
        open_table(e, s)  # it has one
    assert look(e, "table")[slots].tolist() == list(range(SLOTS))
    assert look(e, "free_table")[0] == 0
    look(e, "block_table")[:] = np.arange(64 * 256).reshape(64, 256)
    more = shared.new_slot(e, SLOTS, 16, 2, 0)
    open_table(e, more)
    assert look(e, "table")[more] == 64
    table, free = look(e, "block_table"), look(e, "free_table")
    assert (table.shape, look(e, "block_keys").shape, look(e, "keys_known").size) == ((128, 256), (128, 256), 128)
    assert (table[:64] == np.arange(64 * 256).reshape(64, 256)).all() and not table[64:].any()
    assert free[0] == 63 and free[1:64].tolist() == list(range(127, 64, -1))
    row = look(e, "row")[more]
    assert key_of(e, more, 600) == private_key(row, 600)
    assert look(e, "block_keys").shape == look(e, "block_table").shape == (128, 1024)
    assert look(e, "keys_known")[64] == 601
    assert [key_of(e, more, j) for j in (0, 5, 601)] == [private_key(row, j) for j in (0, 5, 601)]
    close_table(e, more)
    close_table(e, more)  # it has none
    assert look(e, "table")[more] == -1
    assert look(e, "free_table")[:65].tolist() == [64, *range(127, 63, -1)]
    look(e, "keys_known")[64] = 9
    open_table(e, more)
    assert look(e, "keys_known")[64] == 0  # another's keys are not its own


def test_news_are_kept_in_order_however_many() -> None:
    e = idle("vllm-v1", logging=True)
    s = shared.new_slot(e, 7, 16, 2, 0)
    for i in range(130):
        shared.tell(e, i % 6 + 1, s, 10 * i, 0.5 * i)
    assert look(e, "news_count") == 130
    columns = [look(e, f"news_{name}")[:130].tolist() for name in ("kind", "row", "slot", "value", "s", "from_s")]
    times = [0.5 * i for i in range(130)]
    assert columns == [
        [i % 6 + 1 for i in range(130)],
        [7] * 130,
        [s] * 130,
        [10 * i for i in range(130)],
        times,
        times,
    ]
    chunks = [i for i in range(130) if i % 6 + 1 == shared.CHUNK]
    shared.date_chunks(e, 11, 3.0, 4.0)
    for name, at in (("s", 4.0), ("from_s", 3.0)):
        found = look(e, f"news_{name}")[:130].tolist()
        assert found == [at if i in chunks and i >= 11 else times[i] for i in range(130)]
    for i in range(1030):
        shared.log_entry(e, s, i)
    assert look(e, "log_rows") == 1030
    assert look(e, "log_tokens")[:1030].tolist() == list(range(1030)) and set(look(e, "log_row")[:1030].tolist()) == {7}


def test_gaps_have_a_thousand_bins_a_decade() -> None:
    e = idle("vllm-v1")
    for seconds, tokens in ((1e-9, 1), (1.001e-6, 2), (0.01, 3), (0.02, 4), (5000.0, 5)):
        shared.count_gap(e, seconds, tokens)
    counts = look(e, "gap_counts")
    places = {0: 3, int((np.log10(0.01) + 6.0) * 1000.0): 3, 4301: 4, GAP_BINS - 1: 5}
    assert {int(i): int(counts[i]) for i in np.flatnonzero(counts)} == places
    assert look(e, "gap_sum_s") == pytest.approx(1e-9 + 2 * 1.001e-6 + 0.03 + 0.08 + 25_000.0)
    assert look(e, "gap_max_s") == 5000.0
    shared.count_gap(e, 6.0, -1)
    assert look(e, "gap_max_s") == 5000.0


def test_results_of_nobody_are_empty() -> None:
    desk = DeskColumns(3)
    for name in ("prefill_start_s", "prefill_end_s", "decode_start_s", "first_token_s", "last_token_s"):
        assert np.isnan(getattr(desk, name)).all() and getattr(desk, name).size == 3
    assert desk.token_sum_s.tolist() == [0.0] * 3
    assert (desk.cached_tokens.tolist(), desk.preemptions.tolist()) == ([-1] * 3, [0] * 3)


def test_numbers_that_tell_states_apart() -> None:
    """States, roles, kinds of news and policies are told by number, from 0 (news: 1) on."""

    def told(module: Any, names: str) -> list[int]:
        return [getattr(module, name) for name in names.split()]

    assert told(shared, "FREE WAITING PREFILLING DECODING LEAVING REMOTE HELD SPECULATING") == list(range(8))
    assert told(shared, "COLOCATED PREFILL DECODE MIXED") == list(range(4))
    assert told(shared, "FINISHED PREFILLED READ LOAD COMPUTED CHUNK") == list(range(1, 7))
    names = "FREE WAITING CHUNKED PREFILLED_LAST RUNNING DROPPED DONE REMOTE READY HELD RETRACTED"
    assert told(sglang, names) == list(range(11))
    assert told(sglang, "STAYS GONE TOLD") == list(range(3))
    assert told(rules, "VLLM TENSORRT_LLM DISTSERVE SPLITWISE VLLM_V0") == list(range(5))
    assert told(rules, "GUARANTEED_NO_EVICT MAX_UTILIZATION STATIC_BATCH") == list(range(3))
    assert told(rules, "REMADE AT_DECODE AT_PREFILL") == list(range(3))
