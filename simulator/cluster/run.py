"""One run: a trace offered to a worked-out cluster. A request's way through the rooms, from arrival to desk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.cache.caches import Caches
from simulator.cluster.changes import follow
from simulator.cluster.dispatch import Dispatcher, is_tracking
from simulator.cluster.faults.clients import Clients
from simulator.cluster.faults.desk import FaultDesk
from simulator.cluster.faults.events import Faults
from simulator.cluster.faults.scaling import Scaler
from simulator.cluster.frontdesk import FrontEnds
from simulator.cluster.handover import Handover, HandoverColumns, Rooms, protocol
from simulator.cluster.limits import LimitError, Limits, Watch
from simulator.cluster.plan import ClusterPlan, WorkerPlan
from simulator.cluster.prepare import allowed_output, content_columns, followers, misfits, private_rows
from simulator.cluster.processes import Agenda, Clock, Transfers, Worker
from simulator.cluster.result import COMPLETED, FAILED, REJECTED, UNFINISHED
from simulator.cluster.routers import Decision, Prompts
from simulator.cluster.routing_checks import is_lending
from simulator.cost.table import prefill_rate
from simulator.engine.engine import Engine, EngineSpec, News
from simulator.engine.state import CHUNK, COMPUTED, FINISHED, LOAD, NEVER, PREFILLED, READ, DeskColumns
from simulator.errors import TraceError
from simulator.network.fabric import Fabric, Network
from simulator.workload.arrivals import Arrivals
from simulator.workload.trace import Trace


@dataclass(frozen=True)
class RunOptions:
    """How to run. ``logging``: every engine writes every batch down. ``macro``: stretches of decode in one go."""

    logging: bool = False
    macro: bool = True
    one_output_content: int | None = None  # all outputs are this content, as in the exact scheduler cases
    slo_itl: bool = False  # each request's own token gaps are wanted: every batch is written down, which takes time
    tell_finished: bool = False  # engines tell of every finished request, though nobody waits for it
    seed: int = 0  # of routers that draw, and of how long launches take
    progress: Callable[[float], None] | None = None
    limits: Limits = field(default_factory=Limits)


class Cluster:
    """The state of one run: workers, pools, the desk, and the moves of a request between them."""

    def __init__(self, plan: ClusterPlan, trace: Trace, arrivals: Arrivals, options: RunOptions) -> None:
        self.plan, self.trace, self.options = plan, trace, options
        rows = len(trace)
        self.clock = Clock()
        self.desk = DeskColumns(rows)
        self.moved = HandoverColumns(rows)
        self.prefill_worker = np.full(rows, -1, np.int32)
        self.decode_worker = np.full(rows, -1, np.int32)
        self.state = np.full(rows, UNFINISHED, np.int8)
        self.reason = np.full(rows, -1, np.int16)
        self.reasons: list[str] = []
        self.warnings: tuple[str, ...] = plan.warnings
        self.arrival_s = np.array(trace.arrival_s)
        self._inputs, self._outputs = trace.input_tokens.tolist(), trace.output_tokens.tolist()
        self._clients = arrivals.clients if arrivals.kind == "closed" else None
        self._follows = followers(trace)
        chained = options.tell_finished or self._clients is not None or bool(self._follows) or plan.faults is not None
        content = self.content = content_columns(trace, options.one_output_content)
        self.max_output_tokens = allowed_output(trace, plan.topology.max_output_tokens)
        self.workers = [self._worker(w, content, chained) for w in plan.workers]
        prompts = Prompts(content, private_rows(trace), self.workers[0].engine.block_size)
        self.dispatch = Dispatcher(plan, trace, self.workers, prompts, options.seed)
        self.agenda = Agenda(self.clock)
        self.transfers = self._transfers()
        self.caches = self._caches(prompts)
        self.faults: FaultDesk | None = None
        known = not (self._clients or self._follows or plan.faults)
        there = None if plan.faults is None else lambda: [worker.index for worker in self.dispatch.entry.workers]
        lengths = (trace.input_tokens, trace.output_tokens)
        self.front = FrontEnds(self.clock, plan.workers, self.workers, lengths, known, self.enter, there)
        self.handover = self._handover()
        self._check_fit()
        self._sent = 0
        first = self._first_rows()
        self.source = self.front.open(self.arrival_s[first], first)
        self._expect_faults()

    def run(self) -> None:
        """Until every request is done; then every engine is brought to its end. Or until a limit is reached."""
        watch = Watch(self.options.limits) if self.options.limits.any else None
        try:
            self.clock.run(None if watch is None else watch.look)
            for worker in self.workers:
                worker.catch_up(NEVER / 10)
                if watch is not None:
                    watch.look()
        except LimitError as limit:
            self.warnings += (f"{limit}; {self._so_far()}",)
        done = ~np.isnan(self.desk.last_token_s)
        end_s = float(self.desk.last_token_s[done].max()) if done.any() else 0.0
        self.front.settle(end_s)
        self.warnings += self.front.warnings([worker.name for worker in self.plan.workers])
        self.state[done & (self.state == UNFINISHED)] = COMPLETED
        if self.faults is not None:
            self.faults.settle(end_s)
            if self.scaler is not None:
                self.scaler.settle(end_s)

    def _so_far(self) -> str:
        done = int((~np.isnan(self.desk.last_token_s)).sum())
        return f"{self._sent:,} of {len(self.trace):,} requests were sent by then, {done:,} are finished"

    # The way of a request

    def enter(self, row: int, now: float) -> None:
        """A request comes out of the front end: reject what can never fit, else on to the first engine."""
        self._sent += 1
        if self.options.progress is not None and self._sent % 1024 == 0:
            self.options.progress(self._sent / len(self.trace))
        if self.state[row] == REJECTED:
            self._after(row, now)
            return
        if self.faults is not None and not self.faults.admits(row, now):
            return
        decision = self.dispatch.enter(row, now)
        if isinstance(decision, str):
            self._turn_away(row, decision, now)
            return
        self._begin(row, decision, now)

    def _begin(self, row: int, decision: Decision, now: float) -> None:
        """The first worker: it computes the prompt, and decodes unless another one does."""
        worker = self.workers[decision.first]
        self.prefill_worker[row] = worker.index
        if self.caches is not None and not decision.reach:
            self.caches.stay_near(row)
        prefills_only = self.plan.workers[worker.index].role == "prefill"
        elsewhere = prefills_only if decision.second is None else decision.second != worker.index
        if elsewhere and self.handover is not None:
            self.handover.enter(row, worker, now)
        else:
            self.decode_worker[row] = worker.index
            worker.submit(row, self._inputs[row], self._outputs[row], now)

    def hear(self, worker: Worker, news: News) -> None:
        """News of an engine: finished, prompt done, KV wanted."""
        handover = self.handover
        for kind, row, slot, value, at, since in zip(*(column.tolist() for column in news), strict=True):
            if kind == FINISHED:
                if self.faults is not None:
                    self.faults.finished(worker, row)
                if self.caches is not None:
                    self.caches.finished(worker, row, at)
                sent_s = self.plan.workers[worker.index].frontend_after_s + self.front.late_s(worker, at)
                self._after(row, at + sent_s)
            elif kind == COMPUTED:
                self._computed(worker, row, at)
            elif kind == LOAD and self.caches is not None:
                self.caches.load(worker, row, slot, value, at)
            elif handover is None:
                continue
            elif kind == CHUNK:
                handover.chunk(row, value, since, at)
            elif kind == READ:
                self.front.also_came(row, worker, at)
                handover.memory_taken(worker.index, row, slot, value, at)
            elif kind == PREFILLED:
                self._computed(worker, row, at)
                if self._outputs[row] == 1 and worker.engine.passes_first_token:
                    self._end_with_prompt(worker, row, slot, at)
                else:
                    handover.prompt_done(row, slot, at)

    def _computed(self, worker: Worker, row: int, now: float) -> None:
        self.dispatch.computed(worker.index, row, now)
        if self.caches is not None:
            self.caches.computed(worker, row, now)
            self.caches.drain(worker, now)

    def _end_with_prompt(self, worker: Worker, row: int, slot: int, now: float) -> None:
        """The only token was made with the prompt: nothing is left for a decode engine."""
        for column in (self.desk.first_token_s, self.desk.last_token_s, self.desk.token_sum_s):
            column[row] = now
        if self.faults is not None:
            self.faults.finished(worker, row)
        if self.handover is not None:
            self.agenda.add(now, partial(self.handover.not_needed, row, slot))
        self._after(row, now + self.plan.workers[worker.index].frontend_after_s)

    def fail(self, row: int, now: float, reason: str) -> None:
        """A request ends without an answer, unless it may be sent again."""
        if self.faults is None:
            self.end(row, FAILED, reason, now)
        else:
            self.faults.failed(row, now, reason)

    def end(self, row: int, state: int, reason: str, now: float) -> None:
        """A request is over, in this state and for this reason."""
        self.state[row] = state
        self.give_reason(row, reason)
        self._after(row, now)

    def give_reason(self, row: int, reason: str) -> None:
        """Note why a request has no answer."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        self.reason[row] = self.reasons.index(reason)

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
        if self.clients is not None:
            self.clients.sent(row, now)
        self.source.add(row, now + self.front.way_s[row])

    # Setting up

    def _first_rows(self) -> NDArray[np.int64]:
        """The requests that wait for no other."""
        rows = np.arange(len(self.trace))
        if self._follows:
            rows = rows[~np.isin(rows, list(self._follows.values()))]
        if self._clients is not None:
            self._queue = rows[self._clients :][::-1].tolist()
            rows = rows[: self._clients]
            self.arrival_s[rows] = 0.0
        return rows

    @property
    def lengths(self) -> tuple[list[int], list[int]]:
        """Prompt and output tokens of each request as engines see them: what a client has already is prompt."""
        return self._inputs, self._outputs

    def follow_up_rows(self) -> list[int]:
        """Rows whose moment is not known beforehand: later turns, and what closed-loop clients have yet to send."""
        waiting = self._queue if self._clients is not None else []
        return [*self._follows.values(), *waiting]

    def _worker(self, plan: WorkerPlan, content: object, chained: bool) -> Worker:
        transfer, cache = self.plan.transfer, self.plan.cache
        decodes_only = plan.role == "decode" and not is_lending(self.plan.topology)
        tell_prompts = not decodes_only and (is_tracking(self.plan) or cache is not None)
        keeps_outputs = cache is not None and cache.outputs and cache.own[plan.index]
        spec = EngineSpec(
            policy=plan.policy,
            role="mixed" if is_lending(self.plan.topology) else plan.role,
            settings=dict(plan.settings),
            kv_blocks=plan.kv_blocks,
            cost=replace(plan.step_cost, launch_seed=self.options.seed),
            tell_finished=chained or tell_prompts or keeps_outputs,
            tell_prompts=tell_prompts,
            tell_evicted=cache is not None and cache.write == "evict" and cache.own[plan.index],
            tell_chunks=transfer is not None and protocol(transfer.mode, transfer.landing).tells_chunks,
            logging=self.options.logging or self.options.slo_itl,
            macro=self.options.macro,
            extra={
                "max_output_tokens": self.max_output_tokens,
                "priority": self.trace.priority,
                "loads": cache is not None,
                "read_post_s": self._read_post_s(plan.index),
                "send_post_s": self._send_post_s(plan.index),
                "ranks": plan.parallel.dp,
            },
        )
        engine = Engine(spec, content, self.desk.record)
        return Worker(self.clock, plan.index, engine, prefill_rate(plan.step_cost, plan.max_step_tokens), self.hear)

    def _send_post_s(self, index: int) -> tuple[float, float, float]:
        """Seconds that the loop of an engine that pushes spends on posting the write of a prompt, of each block, and of
        each run of blocks side by side."""
        transfer = self.plan.transfer
        routes = [] if transfer is None or not transfer.setup_in_turn else transfer.routes.items()
        return max(
            ((route.setup_s, route.per_block_s, route.per_run_s) for (src, _), route in routes if src == index),
            default=(0.0, 0.0, 0.0),
        )

    def _read_post_s(self, index: int) -> float:
        """Seconds a block that the engine's own loop spends on posting a read; an engine that is pushed to has none."""
        transfer = self.plan.transfer
        if transfer is None or transfer.mode != "pull":
            return 0.0
        return max((route.post_s_per_block for (_, dst), route in transfer.routes.items() if dst == index), default=0.0)

    def _handover(self) -> Handover | None:
        transfer = self.plan.transfer
        if not self.plan.topology.disaggregated or transfer is None:
            return None
        rooms = Rooms(
            plan=transfer,
            workers=self.workers,
            prefill_worker=self.prefill_worker,
            decode_worker=self.decode_worker,
            input_tokens=self._inputs,
            output_tokens=self._outputs,
            agenda=self.agenda,
            transfers=None if transfer.explicit else self.transfers,
            choose_decode=self.dispatch.decode,
            fail=self.fail,
            entry_before_s=self.front.before_s,
            kv_runs=self.desk.kv_runs,
            decode_before_s=self.plan.workers[self.dispatch.second.workers[0].index].frontend_before_s,
            timeout_s=None if self.plan.faults is None else self.plan.faults.transfer_timeout_s,
        )
        return protocol(transfer.mode, transfer.landing)(rooms, self.moved)

    def _expect_faults(self) -> None:
        """Whatever can fail in this run, and clients that may leave."""
        self.clients: Clients | None = None
        self.scaler: Scaler | None = None
        plan = self.plan.faults
        if plan is None:
            return
        self.faults = FaultDesk(self, plan)
        self.events = Faults(self, self.faults, self.options.seed)
        self.clients = Clients(self, self.faults, self.options.seed)
        if plan.autoscaling is not None:
            self.scaler = Scaler(self, self.faults, plan.autoscaling)

    def _transfers(self) -> Transfers | None:
        """What moves over links that are shared: handovers, loads and copies of caches."""
        transfer, cache = self.plan.transfer, self.plan.cache
        shared = transfer is not None and not transfer.explicit
        if cache is None and not shared:
            return None
        network = cache.network if cache is not None else transfer.network if transfer is not None else Network()
        transfers = Transfers(self.clock, Fabric(network))
        if transfer is not None and shared:
            follow(self.agenda, transfers, transfer.changes)
        return transfers

    def _caches(self, prompts: Prompts) -> Caches | None:
        if self.plan.cache is None or self.transfers is None:
            return None
        lengths, clocks = (self._inputs, self._outputs), (self.agenda, self.transfers)
        caches = Caches(self.plan.cache, self.workers, prompts, lengths, clocks)
        self.dispatch.use_caches(caches)
        return caches

    def _check_fit(self) -> None:
        """Reject requests that no worker could ever hold; if none is left, the trace is bad input."""
        trace = self.trace
        total = trace.input_tokens + trace.output_tokens
        for kind, pool in (("", self.dispatch.entry), ("decode ", self.dispatch.second)):
            if not pool.workers:
                continue
            plans = [self.plan.workers[worker.index] for worker in pool.workers]
            for which, reason in misfits(trace, plans, kind, pool.workers[0].engine.longest_prompt):
                self._reject(which, reason)
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

    def _turn_away(self, row: int, reason: str, now: float) -> None:
        """Admission has rejected a request that would have fitted."""
        if self.faults is not None:
            self.faults.end(row, REJECTED, reason, now)
        else:
            self.end(row, REJECTED, reason, now)
