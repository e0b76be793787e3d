"""The state of one serving engine, and the small moves on it: queues, slots, news, the time series.

A *slot* is the place of one live request in the columns; ``row`` is the request's row in the trace. A *batch* is one
engine step, numbered from 0 in order of planning. A decoding request gets one token in every batch, so its computed
tokens before batch b are ``b + offset[slot]``: nothing is updated per token.
"""

from __future__ import annotations

import math

import numpy as np

from simulator.compiled import compiled, record
from simulator.engine.columns import COLUMNS, GAP_BINS, MAX_SAMPLES, RING
from simulator.kv.pool import make_pool
from simulator.kv.unshared import make_unshared

FREE, WAITING, PREFILLING, DECODING, LEAVING, REMOTE, HELD, SPECULATING = 0, 1, 2, 3, 4, 5, 6, 7
COLOCATED, PREFILL, DECODE, MIXED = 0, 1, 2, 3
FINISHED, PREFILLED, READ, LOAD, COMPUTED, CHUNK = 1, 2, 3, 4, 5, 6

NEVER = 1e300
NO_BATCH = 1 << 60
INSTANT_S = 1e-9  # events closer than this are one instant (house rule 3)

Engine = record("Engine", COLUMNS, __name__)

DESK_FIELDS = (
    "prefill_start_s",
    "prefill_end_s",
    "decode_start_s",
    "first_token_s",
    "last_token_s",
    "token_sum_s",
    "cached_tokens",
    "preemptions",
    "kv_runs",
)
Desk = record("Desk", DESK_FIELDS, __name__)


@compiled
def make_desk(start, end, decode_start, first, last, token_sum, cached, preemptions, runs):  # type: ignore[no-untyped-def]
    return Desk(start, end, decode_start, first, last, token_sum, cached, preemptions, runs)


class DeskColumns:
    """The result columns that all engines of a run write to: one row a request, NaN or -1 where nothing came."""

    def __init__(self, rows: int) -> None:
        self.prefill_start_s = np.full(rows, np.nan)
        self.prefill_end_s = np.full(rows, np.nan)
        self.decode_start_s = np.full(rows, np.nan)
        self.first_token_s = np.full(rows, np.nan)
        self.last_token_s = np.full(rows, np.nan)
        self.token_sum_s = np.zeros(rows)
        self.cached_tokens = np.full(rows, -1, np.int64)
        self.preemptions = np.zeros(rows, np.int64)
        self.kv_runs = np.ones(rows)  # stretches of memory side by side that hold the prompt's KV, to decode
        self.record = make_desk(*(getattr(self, name) for name in DESK_FIELDS))


@compiled
def make_engine(  # type: ignore[no-untyped-def]
    role,
    depth,
    max_num_seqs,
    token_budget,
    block_size,
    max_model_len,
    caching,
    counting,
    deferred_frees,
    tell_finished,
    tell_prompts,
    tell_evicted,
    tell_chunks,
    logging,
    macro,
    blocks,
    rules,
    cost,
    content,
    desk,
):
    """An idle engine with ``blocks`` usable KV blocks.

    ``counting``: blocks are told apart only once a request may be preempted (see ``simulator.engine.tracking``).
    """
    tracking = caching and not counting
    slots = 64
    zeros = np.zeros(slots, np.int64)
    reals = np.zeros(slots)
    lists = np.zeros((RING, slots), np.int64)
    ring = np.zeros(RING, np.int64)
    tables = 64 if caching else 1
    width = 256 if caching else 1
    table = np.zeros((tables, width), np.int64)
    free_table = np.zeros(tables + 1, np.int64)
    free_table[0] = tables
    for i in range(tables):
        free_table[i + 1] = tables - 1 - i
    free_slot = np.zeros(slots, np.int64)
    for i in range(slots):
        free_slot[i] = slots - 1 - i
    log = 1024 if logging else 1
    return Engine(
        # settings
        role,
        depth,
        max_num_seqs,
        token_budget,
        block_size,
        max_model_len,
        tracking,
        counting,
        deferred_frees,
        tell_finished,
        tell_prompts,
        tell_chunks,
        logging,
        macro,
        # numbers
        0,
        0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        NEVER,
        -1.0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        slots,
        0.0,
        0.0,
        0.0,
        0,
        0,
        0,
        0,
        0,
        0,
        0.0,
        0.0,
        0.01,
        0.0,
        0,
        0,
        0,
        # slots: integers
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        # slots: reals
        reals.copy(),
        reals.copy(),
        reals.copy(),
        reals.copy(),
        # arrays
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        np.zeros(block_size, np.int64),
        np.full(block_size, -1, np.int64),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        np.zeros(RING),
        ring.copy(),
        ring.copy(),
        ring.copy(),
        ring.copy(),
        ring.copy(),
        ring.copy(),
        ring.copy(),
        ring.copy(),
        lists.copy(),
        lists.copy(),
        lists.copy(),
        lists.copy(),
        lists.copy(),
        lists.copy(),
        lists.copy(),
        zeros.copy(),
        free_slot,
        table,
        table.copy(),
        np.zeros(tables, np.int64),
        free_table,
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        zeros.copy(),
        reals.copy(),
        reals.copy(),
        zeros.copy(),
        zeros.copy(),
        np.zeros(rules.stream_interval, np.int64),
        np.zeros(rules.stream_interval + 1),
        np.zeros(GAP_BINS, np.int64),
        np.zeros(MAX_SAMPLES),
        np.zeros(MAX_SAMPLES, np.int64),
        np.zeros(MAX_SAMPLES, np.int64),
        np.zeros(MAX_SAMPLES, np.int64),
        np.zeros(log),
        np.zeros(log),
        np.zeros(log, np.int64),
        np.zeros(log, np.int64),
        np.zeros(log, np.int64),
        # records
        rules,
        cost,
        make_pool(blocks, tracking, tell_evicted),
        make_unshared(blocks),
        content,
        desk,
    )


@compiled
def longer(values):  # type: ignore[no-untyped-def]
    """A copy with twice the room."""
    grown = np.zeros(values.size * 2, values.dtype)
    grown[: values.size] = values
    return grown


@compiled
def wider(values):  # type: ignore[no-untyped-def]
    """A copy of a table with twice the columns."""
    rows, columns = values.shape
    grown = np.zeros((rows, columns * 2), values.dtype)
    grown[:, :columns] = values
    return grown


@compiled
def grow_slots(e):  # type: ignore[no-untyped-def]
    """Twice the slots, when more requests are live than ever before."""
    old = e.row.size
    e.row, e.status, e.prompt, e.target = longer(e.row), longer(e.status), longer(e.prompt), longer(e.target)
    e.part, e.outside = longer(e.part), longer(e.outside)
    e.received, e.computed, e.offset = longer(e.received), longer(e.computed), longer(e.offset)
    e.first_batch, e.last_batch = longer(e.first_batch), longer(e.last_batch)
    e.absent_batch, e.stale_batch, e.order = longer(e.absent_batch), longer(e.stale_batch), longer(e.order)
    e.held_blocks, e.registered, e.table = longer(e.held_blocks), longer(e.registered), longer(e.table)
    e.hit, e.times_preempted = longer(e.hit), longer(e.times_preempted)
    e.bucket_next, e.pledge, e.remote = longer(e.bucket_next), longer(e.pledge), longer(e.remote)
    e.rank, e.arrival = longer(e.rank), longer(e.arrival)
    e.segment, e.segment_low = longer(e.segment), longer(e.segment_low)
    e.token_sum, e.last_token = longer(e.token_sum), longer(e.last_token)
    e.running, e.holding, e.reports = longer(e.running), longer(e.holding), longer(e.reports)
    e.unsent, e.late, e.passed = longer(e.unsent), longer(e.late), longer(e.passed)
    e.firsts, e.leaving, e.stale = wider(e.firsts), wider(e.leaving), wider(e.stale)
    e.absent, e.batch_report = wider(e.absent), wider(e.batch_report)
    e.made_slot, e.made_tokens = wider(e.made_slot), wider(e.made_tokens)
    ring = np.zeros(old * 2, np.int64)
    for i in range(e.waiting_count):
        ring[i] = e.waiting[(e.waiting_head + i) % old]
    e.waiting, e.waiting_head = ring, 0
    e.free_slot = longer(e.free_slot)
    for i in range(old):
        e.free_slot[e.free_slots] = 2 * old - 1 - i
        e.free_slots += 1


@compiled
def new_slot(e, row, prompt, target, part):  # type: ignore[no-untyped-def]
    """A slot for a request that has just come; ``part``: what is to be done of it here."""
    if e.free_slots == 0:
        grow_slots(e)
    e.free_slots -= 1
    s = e.free_slot[e.free_slots]
    e.row[s], e.status[s], e.prompt[s], e.target[s] = row, WAITING, prompt, target
    e.received[s], e.computed[s], e.remote[s], e.pledge[s], e.passed[s] = 0, 0, 0, 0, 0
    e.part[s], e.outside[s] = part, 0
    e.rank[s], e.arrival[s] = 0, 0
    e.absent_batch[s], e.stale_batch[s] = -1, -1
    e.held_blocks[s], e.registered[s], e.table[s] = 0, 0, -1
    e.hit[s], e.times_preempted[s], e.token_sum[s] = -1, 0, 0.0
    return s


@compiled
def free_slot(e, s):  # type: ignore[no-untyped-def]
    e.status[s] = FREE
    e.free_slot[e.free_slots] = s
    e.free_slots += 1


@compiled
def tell(e, kind, s, value, now):  # type: ignore[no-untyped-def]
    """Leave a piece of news for the cluster."""
    i = e.news_count
    if i == e.news_kind.size:
        e.news_kind, e.news_row, e.news_slot = longer(e.news_kind), longer(e.news_row), longer(e.news_slot)
        e.news_value, e.news_s, e.news_from_s = longer(e.news_value), longer(e.news_s), longer(e.news_from_s)
    e.news_kind[i], e.news_row[i], e.news_slot[i], e.news_value[i] = kind, e.row[s], s, value
    e.news_s[i], e.news_from_s[i] = now, now
    e.news_count += 1


@compiled
def prompt_done(e, s, end):  # type: ignore[no-untyped-def]
    """A prompt that is also decoded here is computed."""
    e.desk.prefill_end_s[e.row[s]] = end
    if e.tell_prompts:
        tell(e, COMPUTED, s, 0, end)


@compiled
def date_chunks(e, first, start, end):  # type: ignore[no-untyped-def]
    """The chunks among the news from ``first`` on are computed from ``start`` to ``end``."""
    for i in range(first, e.news_count):
        if e.news_kind[i] == CHUNK:
            e.news_s[i], e.news_from_s[i] = end, start


@compiled
def count_gap(e, seconds, tokens):  # type: ignore[no-untyped-def]
    """``tokens`` tokens came ``seconds`` after the one before them."""
    place = int((math.log10(max(seconds, 1e-6)) + 6.0) * 1000.0)
    e.gap_counts[min(place, GAP_BINS - 1)] += tokens
    e.gap_sum_s += seconds * tokens
    e.gap_max_s = max(e.gap_max_s, seconds)


@compiled
def thin(e):  # type: ignore[no-untyped-def]
    """Drop every second point of a full time series; new ones come no denser than those that stay."""
    apart_s = (e.sample_s[MAX_SAMPLES - 1] - e.sample_s[0]) / (MAX_SAMPLES - 1)
    for i in range(MAX_SAMPLES // 2):
        e.sample_s[i], e.sample_running[i] = e.sample_s[2 * i], e.sample_running[2 * i]
        e.sample_waiting[i], e.sample_blocks[i] = e.sample_waiting[2 * i], e.sample_blocks[2 * i]
    e.samples = MAX_SAMPLES // 2
    e.sample_every_s = 2.0 * max(e.sample_every_s, apart_s)


@compiled
def sample(e, now):  # type: ignore[no-untyped-def]
    """Write a point of the time series."""
    if e.samples == MAX_SAMPLES:
        thin(e)
    i = e.samples
    e.samples += 1
    e.sample_s[i], e.sample_running[i] = now, e.running_count
    e.sample_waiting[i], e.sample_blocks[i] = e.waiting_count, e.pool.blocks - e.pool.free
    e.sample_next_s = now + e.sample_every_s


@compiled
def log_entry(e, s, tokens):  # type: ignore[no-untyped-def]
    if e.log_rows == e.log_row.size:
        e.log_row, e.log_tokens = longer(e.log_row), longer(e.log_tokens)
    e.log_row[e.log_rows], e.log_tokens[e.log_rows] = e.row[s], tokens
    e.log_rows += 1
