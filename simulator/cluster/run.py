"""One run: a trace offered to a worked-out cluster. A request's way through the rooms, from arrival to desk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.handover import HandoverColumns, Pull
from simulator.cluster.plan import ClusterPlan, WorkerPlan
from simulator.cluster.processes import Agenda, Clock, LoadSource, Transfers, Worker
from simulator.cluster.result import COMPLETED, REJECTED, UNFINISHED
from simulator.cluster.routers import ROUTERS, Asked, Pool
from simulator.cost.table import prefill_rate
from simulator.engine.engine import Engine, EngineSpec, News
from simulator.engine.state import FINISHED, NEVER, PREFILLED, READ, DeskColumns
from simulator.errors import TopologyError, TraceError, unknown
from simulator.kv.content import OUTPUT_CONTENT, PRIVATE_CONTENT, SESSION_CONTENT, make_content
from simulator.network.fabric import Fabric
from simulator.workload.arrivals import Arrivals
from simulator.workload.trace import Trace

_NO_BLOCKS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class RunOptions:
    """How to run. ``logging``: every engine writes every batch down. ``macro``: stretches of decode in one go."""

    logging: bool = False
    macro: bool = True
    one_output_content: int | None = None  # all outputs are this content, as in the exact scheduler cases
    slo_itl: bool = False  # each request's own token gaps are wanted: every batch is written down, which takes time
    tell_finished: bool = False  # engines tell of every finished request, though nobody waits for it
    progress: Callable[[float], None] | None = None


class Cluster:
    """The state of one run: workers, pools, the desk, and the moves of a request between them."""

    def __init__(self, plan: ClusterPlan, trace: Trace, arrivals: Arrivals, options: RunOptions) -> None:
        self.plan, self.trace, self.options = plan, trace, options
        rows = len(trace)
        self.clock = Clock()
        self.desk = DeskColumns(rows)
        self.handover = HandoverColumns(rows)
        self.prefill_worker = np.full(rows, -1, np.int32)
        self.decode_worker = np.full(rows, -1, np.int32)
        self.state = np.full(rows, UNFINISHED, np.int8)
        self.reason = np.full(rows, -1, np.int16)
        self.reasons: list[str] = []
        self.arrival_s = np.array(trace.arrival_s)
        self._inputs, self._outputs = trace.input_tokens.tolist(), trace.output_tokens.tolist()
        self._clients = arrivals.clients if arrivals.kind == "closed" else None
        self._follows = _followers(trace)
        chained = options.tell_finished or self._clients is not None or bool(self._follows)
        content = content_columns(trace, options.one_output_content)
        self.max_output_tokens = allowed_output(trace, plan.topology.max_output_tokens)
        self.workers = [self._worker(w, content, chained) for w in plan.workers]
        self.entry = self._pool("prefill", "colocated", "mixed")
        self.second = self._pool("decode")
        self.agenda = Agenda(self.clock)
        self.pull = self._pull()
        self._check_fit()
        self._sent = 0
        self.source = LoadSource(self.clock, *self._first_arrivals(), self.enter)

    def run(self) -> None:
        """Until every request is done; then every engine is brought to its end."""
        self.clock.run()
        for worker in self.workers:
            worker.catch_up(NEVER / 10)
        done = ~np.isnan(self.desk.last_token_s)
        self.state[done] = COMPLETED

    # The way of a request

    def enter(self, row: int, now: float) -> None:
        """A request comes out of the front end: reject what can never fit, else on to the first engine."""
        self._sent += 1
        if self.options.progress is not None and self._sent % 1024 == 0:
            self.options.progress(self._sent / len(self.trace))
        if self.state[row] == REJECTED:
            self._after(row, now)
            return
        worker = self.pick(self.entry, self.entry_router, row, now)
        self.prefill_worker[row] = worker.index
        if self.plan.workers[worker.index].role == "prefill":
            worker.submit(row, self._inputs[row], 1, now)
        else:
            self.decode_worker[row] = worker.index
            worker.submit(row, self._inputs[row], self._outputs[row], now)

    def hear(self, worker: Worker, news: News) -> None:
        """News of an engine: finished, prompt done, KV wanted."""
        for kind, row, slot, value, at in zip(*(column.tolist() for column in news), strict=True):
            if kind == FINISHED:
                self._after(row, at + self.plan.workers[worker.index].frontend_after_s)
            elif kind == PREFILLED:
                self.handover.prefill_slot[row] = slot
                if self.trace.output_tokens[row] == 1 and worker.engine.passes_first_token:
                    self._end_with_prompt(worker, row, slot, at)
                else:
                    self._hand_over(row, at)
            elif kind == READ and self.pull is not None:
                self.pull.read(worker.index, row, slot, value, at)

    def _end_with_prompt(self, worker: Worker, row: int, slot: int, now: float) -> None:
        """The only token was made with the prompt: nothing is left for a decode engine."""
        for column in (self.desk.first_token_s, self.desk.last_token_s, self.desk.token_sum_s):
            column[row] = now
        self.agenda.add(now, lambda at: worker.transfer_ended(slot, at))
        self._after(row, now + self.plan.workers[worker.index].frontend_after_s)

    def _hand_over(self, row: int, now: float) -> None:
        before = self.second_before_s
        if before > 0:
            self.agenda.add(now + before, lambda at: self.enter_second(row, at))
        else:
            self.enter_second(row, now)

    def enter_second(self, row: int, now: float) -> None:
        """The decode engine."""
        worker = self.pick(self.second, self.second_router, row, now)
        self.decode_worker[row] = worker.index
        worker.submit(row, self._inputs[row], self._outputs[row], now, remote=True)

    def pick(self, pool: Pool, router: Callable[[Pool, Asked], int], row: int, now: float) -> Worker:
        """Ask the router."""
        workers: list[Worker] = pool.workers  # type: ignore[assignment]
        if len(workers) == 1:
            return workers[0]
        trace = self.trace
        session = -1 if trace.session is None else int(trace.session[row])
        blocks = _NO_BLOCKS if trace.hash_ids is None else trace.hashes(row)
        asked = Asked(row, self._inputs[row], session, blocks, trace.block_tokens, now)
        return workers[router(pool, asked)]

    def _after(self, row: int, now: float) -> None:
        """What a client does when its request is over: its next one, or the session's next turn after thinking."""
        following = self._follows.get(row)
        if following is not None:
            think = 0.0 if self.trace.think_s is None else float(self.trace.think_s[following])
            self._send(following, now + (think if think > 0 else 0.0))  # not a number: no thinking
        elif self._clients is not None and self._queue:
            self._send(self._queue.pop(), now)

    def _send(self, row: int, now: float) -> None:
        """A client sends; the front end works on it before an engine sees it."""
        self.arrival_s[row] = now
        self.source.add(row, now + self.entry_before_s)

    # Setting up

    def _first_arrivals(self) -> tuple[list[float], list[int]]:
        """Moments at which the requests that wait for no other leave the front end, in order, and their rows."""
        rows = np.arange(len(self.trace))
        if self._follows:
            rows = rows[~np.isin(rows, list(self._follows.values()))]
        if self._clients is not None:
            self._queue = rows[self._clients :][::-1].tolist()
            rows = rows[: self._clients]
            self.arrival_s[rows] = 0.0
        moments = self.arrival_s[rows] + self.entry_before_s
        return moments.tolist(), rows.tolist()

    def _worker(self, plan: WorkerPlan, content: object, chained: bool) -> Worker:
        spec = EngineSpec(
            policy=plan.policy,
            role=plan.role,
            settings=dict(plan.settings),
            kv_blocks=plan.kv_blocks,
            cost=plan.step_cost,
            tell_finished=chained,
            logging=self.options.logging or self.options.slo_itl,
            macro=self.options.macro,
            extra={"max_output_tokens": self.max_output_tokens},
        )
        engine = Engine(spec, content, self.desk.record)
        return Worker(self.clock, plan.index, engine, prefill_rate(plan.step_cost, plan.max_step_tokens), self.hear)

    def _pool(self, *roles: str) -> Pool:
        return Pool([self.workers[w.index] for w in self.plan.workers if w.role in roles])

    def _pull(self) -> Pull | None:
        routing = self.plan.topology.routing
        disaggregated = bool(self.second.workers)
        self.entry_router = router_named(routing.prefill if disaggregated else routing.colocated)
        self.second_router = router_named(routing.decode)
        entry = next(w for w in self.plan.workers if w.role != "decode")
        self.entry_before_s = entry.frontend_before_s
        self.second_before_s = 0.0
        transfer = self.plan.transfer
        if not disaggregated or transfer is None:
            return None
        if transfer.mode != "pull":
            raise TopologyError(
                f"{self.plan.topology.source}: kv_transfer.mode: '{transfer.mode}' cannot be run yet; allowed: pull"
            )
        self.second_before_s = next(w for w in self.plan.workers if w.role == "decode").frontend_before_s
        shared = None if transfer.explicit else Transfers(self.clock, Fabric(transfer.network))
        return Pull(transfer, self.workers, self.prefill_worker, self.agenda, shared, self.handover)

    def _check_fit(self) -> None:
        """Reject requests that no worker could ever hold; if none is left, the trace is bad input."""
        trace = self.trace
        total = trace.input_tokens + trace.output_tokens
        for kind, workers in (("", self.entry.workers), ("decode ", self.second.workers)):
            if not workers:
                continue
            plans = [self.plan.workers[w.index] for w in workers]  # type: ignore[attr-defined]
            tokens = trace.input_tokens + 1 if plans[0].role == "prefill" else total
            room = max(p.kv_blocks * p.block_size for p in plans)
            self._reject(tokens - 1 > room, f"needs more KV cache than a {kind}worker has ({room:,} tokens)")
            limit = max(p.max_context for p in plans)
            longest = workers[0].engine.longest_prompt
            if longest is not None and plans[0].role != "decode":
                which = trace.input_tokens > longest
                self._reject(which, f"prompt longer than a {kind}worker's step, and not to be cut ({longest:,} tokens)")
            self._reject(tokens > limit, f"longer than the {kind}worker's context limit of {limit:,} tokens")
        if np.all(self.state == REJECTED):
            worst = int(np.argmin(total))
            raise TraceError(
                f"{trace.source}: no request fits topology {self.plan.topology.name}: the smallest "
                f"({int(trace.input_tokens[worst]):,} + {int(trace.output_tokens[worst]):,} tokens) "
                f"{self.reasons[int(self.reason[worst])]}"
            )

    def _reject(self, which: NDArray[np.bool_], reason: str) -> None:
        fresh = which & (self.state != REJECTED)
        if fresh.any():
            self.reason[fresh] = len(self.reasons)
            self.reasons.append(reason)
            self.state[fresh] = REJECTED


def router_named(name: str) -> Callable[[Pool, Asked], int]:
    """The router of that name; a ``TopologyError`` with the nearest name if there is none."""
    if name not in ROUTERS:
        raise TopologyError(unknown("routing", "router", name, ROUTERS))
    return ROUTERS[name]


def content_columns(trace: Trace, one_output_content: int | None) -> object:
    """What the prompts and outputs hold, as far as prefix caches can tell."""
    rows = np.arange(len(trace), dtype=np.int64)
    prompt, output = PRIVATE_CONTENT + rows, OUTPUT_CONTENT + rows
    if one_output_content is not None:
        output = np.full(len(trace), one_output_content, np.int64)
    if trace.session is not None and trace.turn is not None:
        shared = trace.session >= 0
        prompt = np.where(shared, SESSION_CONTENT + trace.session, prompt)
        output = np.where(shared, SESSION_CONTENT + trace.session, output)
    ids, offsets = trace.hash_ids, trace.hash_offsets
    if ids is None or offsets is None:
        ids, offsets = _NO_BLOCKS, np.zeros(len(trace) + 1, np.int64)
    if ids.size and (int(ids.max()) >= PRIVATE_CONTENT or int(ids.min()) < 0):
        ids = np.unique(ids, return_inverse=True)[1].astype(np.int64)
    return make_content(
        np.array(trace.input_tokens), np.array(ids), np.array(offsets), trace.block_tokens, prompt, output
    )


def allowed_output(trace: Trace, default: int) -> NDArray[np.int64]:
    """Tokens each client allows, as engines see them; the topology's default, or what comes if more, where not said."""
    given = trace.max_output_tokens
    return np.where(given >= 0, given, np.maximum(default, trace.output_tokens)).astype(np.int64)


def _followers(trace: Trace) -> dict[int, int]:
    """Row of a session's turn -> row of its next turn."""
    if trace.session is None or trace.turn is None:
        return {}
    rows = np.flatnonzero(trace.session >= 0)
    order = rows[np.lexsort((trace.turn[rows], trace.session[rows]))]
    same = np.diff(trace.session[order]) == 0
    return dict(zip(order[:-1][same].tolist(), order[1:][same].tolist(), strict=True))
