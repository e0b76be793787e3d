"""Routers: worked examples, what each looks at, and what a topology may say about them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cluster.assembly import assemble
from simulator.cluster.result import COMPLETED, REJECTED
from simulator.cluster.routers.admission import early, predicted
from simulator.cluster.routers.base import Asked, Front
from simulator.cluster.routers.dynamo import Weights, cost, draw, dynamo
from simulator.cluster.routers.ledger import Ledger
from simulator.cluster.routers.mooncake import mooncake
from simulator.cluster.routers.splitwise import return_home, splitwise
from simulator.cluster.run import Cluster, RunOptions
from simulator.cluster.schema import AdmissionPart, RouterPart
from simulator.cluster.simulation import run_plan
from simulator.cluster.topology import load_topology
from simulator.errors import TopologyError
from simulator.workload.arrivals import Arrivals
from simulator.workload.trace import Trace

AFFINE = {"kind": "affine", "base_s": 0.01, "per_token_s": 1e-5, "per_context_token_s": 1e-8}


def topology(roles: dict[str, int], **parts):
    pools = [
        {"name": role, "role": role, "workers": count, "step_time": AFFINE, "kv_blocks": 1000}
        for role, count in roles.items()
    ]
    values = {"name": "made", "engine": "vllm", "pools": pools, "kv_transfer": {"setup_s": 0.001, "per_block_s": 1e-5}}
    return load_topology(values | parts)


def ask(tokens: int = 160, now: float = 0.0) -> Asked:
    return Asked(0, tokens, -1, np.zeros(0, np.int64), 512, now)


class FakePool:
    """A pool of stated gauges and cached prefixes: running, waiting, holding, free, all blocks, pending tokens."""

    def __init__(self, gauges, device=None, first=0, block_size=16):
        self.gauges = np.array(gauges, dtype=np.float64)
        self.workers = [SimpleNamespace(index=first + i) for i in range(len(gauges))]
        self.device = np.zeros(len(gauges), np.int64) if device is None else np.array(device)
        self.block_size, self.options, self.below = block_size, RouterPart(kind="x"), None
        self.ledger, self.random = Ledger(len(gauges)), np.random.default_rng(0)

    def look(self, now):
        return self.gauges

    def requests(self):
        return self.gauges[:, :3].sum(axis=1)

    def used_blocks(self):
        return self.gauges[:, 4] - self.gauges[:, 3]

    def device_tokens(self, request):
        return self.device

    def prompt_s(self, position, tokens, cached):
        return (tokens - cached) * 1e-3

    def tpot_s(self, position, tokens):
        return float(self.requests()[position] + 1) * 1e-3


def test_dynamos_worked_example():
    """Ten prompt blocks; 2, 5 and 8 of them cached; 10, 5 and 9 decoding: 18, 10 and 11 (Dynamo's router design)."""
    workers = [(2, 10), (5, 5), (8, 9)]
    costs = [cost(Weights(), 10, decode, device) for device, decode in workers]
    assert costs == [18, 10, 11]
    assert draw(costs, 0.0, 0.9) == 1
    pool = FakePool([(0, 0, 0, 100 - blocks, 100, 0) for _, blocks in workers], [16 * d for d, _ in workers])
    assert dynamo(pool, ask(160)) == 1


def test_dynamos_draw_prefers_the_cheap_and_knows_ties():
    uniforms = (np.arange(2000) + 0.5) / 2000
    counts = np.bincount([draw([18, 10, 11], 0.5, u) for u in uniforms], minlength=3)
    assert counts[1] > counts[2] > counts[0] > 0
    assert counts[1] / counts[0] == pytest.approx(np.exp(1 / 0.5), rel=0.05)
    assert [draw([4, 4], 1.0, u) for u in (0.0, 0.49, 0.5, 0.99)] == [0, 0, 1, 1]


def test_cached_blocks_cannot_make_a_prompt_negative():
    assert cost(Weights(overlap_credit=2.0), 10, 7, 8) == 7


def front_of(entry: FakePool, second: FakePool, everyone: FakePool | None = None, roles=(), **parts) -> Front:
    everyone = everyone or entry
    options = RouterPart(kind="x", **parts)
    return Front(entry, second, everyone, list(roles), options, assigned_blocks=np.zeros(len(everyone.workers)))


class FakeCaches:
    def __init__(self, own, best, fetch_s):
        self.own, self.best, self.fetch = own, best, fetch_s

    def held(self, request, worker, device, *, reach):
        return self.best if reach else self.own[worker]

    def fetch_s(self, worker, tokens):
        return self.fetch


def mooncake_choice(own, queued, fetch_s, threshold=2.0):
    entry = FakePool([(0, 0, 0, 100, 100, 0)] * len(own))
    for i, seconds in enumerate(queued):
        if seconds:
            entry.ledger.sent(i, 100 + i, seconds, 0.0)
    second = FakePool([(5, 0, 0, 50, 100, 0), (2, 0, 0, 50, 100, 0)], first=len(own))
    front = front_of(entry, second, kvcache_balancing_threshold=threshold)
    front.below = FakeCaches(own, max(own), fetch_s)
    return mooncake(front, ask(1000))


def test_mooncake_weighs_queue_prefix_and_copying():
    """1 ms a token. The holder of 800 tokens needs 0.2 s behind its queue; others copy them in 0.1 s, or do not."""
    near = mooncake_choice([800, 0, 0], [0.05, 0.0, 0.0], fetch_s=0.1)
    assert (near.first, near.reach) == (0, False)
    assert near.ttft_s == pytest.approx(0.25)
    copied = mooncake_choice([800, 0, 0], [0.5, 0.3, 0.0], fetch_s=0.1)
    assert (copied.first, copied.reach) == (2, True)
    assert copied.ttft_s == pytest.approx(0.3)
    # with 500 tokens of its own the best prefix is not twice as long: it computes the rest
    enough = mooncake_choice([800, 500, 0], [2.0, 0.0, 2.0], fetch_s=0.1)
    assert (enough.first, enough.reach) == (1, False)
    assert enough.ttft_s == pytest.approx(0.5)
    assert near.second == 4  # the decoding instance with the shortest step: the second of two behind three
    assert near.tpot_s == pytest.approx(0.003)


def test_the_ledger_takes_off_what_can_have_been_done():
    ledger = Ledger(2)
    ledger.sent(0, 1, 2.0, 10.0)
    ledger.sent(0, 2, 3.0, 10.5)
    assert ledger.queue_s(0, 11.0) == pytest.approx(4.0)
    assert ledger.queue_s(0, 15.0) == pytest.approx(3.0)  # the first is late, not negative
    assert ledger.done_within(1.5, 11.0) == 1
    assert ledger.done_within(4.5, 11.0) == 2
    ledger.computed(0, 1, 15.0)
    assert ledger.queue_s(0, 16.0) == pytest.approx(2.0)
    ledger.computed(0, 2, 18.0)
    assert ledger.queue_s(0, 18.0) == 0.0 == ledger.queue_s(1, 18.0)


def splitwise_front(gauges, roles, **parts):
    pool = FakePool(gauges)
    return front_of(pool, pool, pool, roles, **parts)


def test_splitwise_takes_the_shortest_queue_and_the_emptiest_memory():
    gauges = [(1, 0, 0, 90, 100, 500), (1, 0, 0, 90, 100, 100), (3, 0, 0, 40, 100, 0), (3, 0, 0, 60, 100, 0)]
    front = splitwise_front(gauges, ["prefill", "prefill", "decode", "decode"])
    decision = splitwise(front, ask())
    assert (decision.first, decision.second) == (1, 3)
    front.assigned_blocks[3] = 30  # prompts on their way count
    assert splitwise(front, ask()).second == 2


def test_splitwise_goes_to_mixed_machines_then_borrows_then_colocates():
    full = (2, 3, 0, 10, 100, 8100)
    mixed = splitwise_front([full, (1, 0, 0, 60, 100, 0), (0, 0, 0, 100, 100, 0)], ["prefill", "decode", "mixed"])
    decision = splitwise(mixed, ask())
    assert (decision.first, decision.second) == (2, 1)
    borrowed = splitwise_front([full, (1, 0, 0, 60, 100, 0), (1, 0, 0, 70, 100, 0)], ["prefill", "decode", "decode"])
    decision = splitwise(borrowed, ask())
    assert decision.first in (1, 2)
    assert borrowed.lent == {decision.first}
    borrowed.everyone.gauges[decision.first, :3] = 0
    return_home(borrowed)
    assert borrowed.lent == set()
    # memory of the only token machine is full, and the prompt machine's queue is long: run to completion somewhere
    alone = splitwise_front([full, (5, 0, 0, 1, 100, 9000)], ["prefill", "decode"])
    alone.lent = {0, 1}
    decision = splitwise(alone, ask())
    assert decision.first == decision.second == 0


def test_admission_goes_by_the_targets_there_are():
    front = front_of(FakePool([(0, 0, 0, 100, 100, 0)]), FakePool([(9, 0, 0, 50, 100, 0)], first=1))
    decision = mooncake(front, ask(1000))
    for targets, reason in [
        ({"ttft": "999ms"}, "turned away: predicted TTFT above 999ms"),
        ({"ttft": "1001ms", "tpot": "9ms"}, "turned away: predicted TPOT above 9ms"),
        ({"ttft": "1001ms", "tpot": "11ms"}, None),
    ]:
        front.admission = AdmissionPart(kind="early", **targets)
        assert early(front, ask(1000), decision) == reason


def test_looking_ahead_takes_off_who_will_be_done_by_then():
    """Nine decode now, 10 ms a step. In the second that the prompt takes five leave, or five more come."""
    front = front_of(FakePool([(0, 0, 0, 100, 100, 0)]), FakePool([(9, 0, 0, 50, 100, 0)], first=1))
    front.admission = AdmissionPart(kind="predicted", tpot="9ms", decode_s=3.0)
    decision = mooncake(front, ask(1000))
    assert predicted(front, ask(1000), decision) is not None
    front.decode_ends_s = [0.5] * 5 + [1.5] * 4
    assert predicted(front, ask(1000), decision) is None
    for row in range(5):
        front.entry.ledger.sent(0, row, 0.1, 0.0)
    assert predicted(front, ask(1000), decision) is not None


TRACE = Trace.from_columns(np.arange(60) * 0.02, np.full(60, 400), np.full(60, 30))

ROUTINGS = [
    {"prefill": "dynamo", "decode": "least_predicted_tpot"},
    {"prefill": {"kind": "dynamo", "temperature": 1.0}, "decode": "dynamo"},
    {"prefill": "shortest_queue", "decode": "least_requests"},
    {"prefill": {"kind": "prefix_affinity", "balance": 2.0}},
    {"joint": "mooncake"},
    {"joint": {"kind": "splitwise", "max_pending_tokens": 500}},
]


@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
@pytest.mark.parametrize("roles", [{"prefill": 2, "decode": 2}, {"prefill": 1, "decode": 2, "mixed": 1}], ids=str)
def test_every_router_sees_each_request_to_its_end(routing, roles):
    plan = assemble(topology(roles, routing=routing))
    record = run_plan(plan, TRACE, Arrivals(), seed=5).record
    assert (record.state == COMPLETED).all()
    again = run_plan(plan, TRACE, Arrivals(), seed=5).record
    assert again.last_token_s.tolist() == record.last_token_s.tolist()
    parts = sum(getattr(record, name) for name in vars(record) if name.startswith("part_"))
    np.testing.assert_allclose(parts, record.first_token_s - record.arrival_s, atol=1e-9)


@pytest.mark.parametrize("roles", [{"prefill": 2, "decode": 1}, {"colocated": 2}], ids=str)
@pytest.mark.parametrize("kind", [{"kind": "early"}, {"kind": "predicted", "decode_s": 0.4}], ids=str)
def test_who_is_turned_away_ends_rejected_with_the_reason(roles, kind):
    admission_part = {"ttft": "60ms", "tpot": "14ms"} | kind
    plan = assemble(topology(roles, admission=admission_part))
    crowd = Trace.from_columns(np.zeros(60), np.full(60, 400), np.full(60, 30))
    record = run_plan(plan, crowd, Arrivals()).record
    rejected = record.state == REJECTED
    assert rejected.sum() > 0
    assert ((record.state == COMPLETED) | rejected).all()
    assert (record.state == COMPLETED).sum() >= 2
    assert all(record.reasons[i].startswith("turned away: predicted T") for i in record.reason[rejected])
    assert np.isnan(record.first_token_s[rejected]).all()


def test_lent_machines_take_the_other_pools_work():
    """A burst of prompts: the token machine computes some of them, as no machine of a fixed role would."""
    plan = assemble(
        topology({"prefill": 1, "decode": 2}, routing={"joint": {"kind": "splitwise", "max_pending_tokens": 800}})
    )
    burst = Trace.from_columns(np.linspace(0, 0.02, 40), np.full(40, 900), np.full(40, 20))
    cluster = Cluster(plan, burst, Arrivals(), RunOptions())
    cluster.run()
    assert (cluster.state == COMPLETED).all()
    computed = [worker.engine.totals().prefill_tokens for worker in cluster.workers]
    assert computed[1] + computed[2] > 900
    for worker in cluster.workers:
        load = worker.engine.load()
        assert load.free_blocks == load.blocks


BAD = [
    ({"routing": {"prefill": "dinamo"}}, "routing.prefill: unknown router 'dinamo' (did you mean 'dynamo'?)"),
    ({"routing": {"joint": "mooncakes"}}, "routing.joint: unknown router 'mooncakes' (did you mean 'mooncake'?)"),
    ({"routing": {"joint": {"kind": "mooncake", "balance": 2.0}}}, "routing.joint.balance: means nothing for router"),
    ({"routing": {"decode": {"kind": "dynamo", "temprature": 1.0}}}, "(did you mean 'temperature'?)"),
    ({"admission": {"kind": "early"}}, "admission: key 'ttft' or 'tpot' is missing"),
    ({"admission": {"kind": "erly", "ttft": "1s"}}, "admission.kind: unknown admission 'erly' (did you mean 'early'?)"),
    ({"admission": {"kind": "early", "ttft": "fast"}}, "admission.ttft: 'fast' is not a duration"),
    ({"admission": {"kind": "predicted", "ttft": "1s"}}, "key 'decode_s' is missing"),
    ({"engine": "sglang", "routing": {"joint": "splitwise"}}, "cannot be run with sglang engines"),
]


@pytest.mark.parametrize(("part", "said"), BAD, ids=lambda value: str(value)[:60])
def test_what_cannot_be_used_is_said_in_one_line(part, said):
    with pytest.raises(Exception) as error:
        topology({"prefill": 1, "decode": 1}, **part)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, TopologyError) or "duration" in said


def test_a_joint_router_needs_two_pools():
    with pytest.raises(TopologyError, match=r"routing.joint: needs prefill and decode pools; found colocated"):
        topology({"colocated": 2}, routing={"joint": "mooncake"})


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8), st.floats(0.01, 10), st.floats(0, 1, exclude_max=True))
def test_a_draw_is_always_one_of_the_workers(costs, temperature, uniform):
    assert 0 <= draw(costs, temperature, uniform) < len(costs)
