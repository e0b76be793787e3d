"""The front desk: asks routers and admission on behalf of the cluster, and tells them what they may know."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from simulator.cluster.plan import ClusterPlan
from simulator.cluster.processes import Worker
from simulator.cluster.routers import ADMISSION, JOINT, ROUTERS, Asked, Decision, Front, Pool, Prompts
from simulator.cluster.routers.base import Below
from simulator.cluster.schema import RouterPart
from simulator.errors import TopologyError, unknown
from simulator.workload.trace import Trace

_NO_BLOCKS = np.zeros(0, np.int64)
_ENTRY, _SECOND = ("prefill", "colocated", "mixed"), ("decode", "mixed")
_EVERYONE = (*_ENTRY, "decode")


def is_tracking(plan: ClusterPlan) -> bool:
    """Whether the front desk predicts times, for which it has to hear of every prompt that is computed."""
    topology = plan.topology
    return topology.admission is not None or topology.routing.joint is not None


class Dispatcher:
    """Pools, their routers, and what is known of requests between arrival and decoding.

    ``entry``: workers that compute prompts; ``second``: those that decode what others computed, if any.
    """

    def __init__(self, plan: ClusterPlan, trace: Trace, workers: Sequence[Worker], prompts: Prompts, seed: int) -> None:
        self._plan, self._trace, self._workers = plan, trace, list(workers)
        self._inputs = trace.input_tokens.tolist()
        routing = plan.topology.routing
        over = self._over = plan.topology.disaggregated
        first, second = routing.router("prefill" if over else "colocated"), routing.router("decode")
        joint = routing.router("joint")
        self._seed, self._prompts, self._options = seed, prompts, (first, second, routing.router("joint"))
        self._members = set(range(len(self._workers)))
        self._silent: set[int] = set()
        self.entry = self._pool(_ENTRY, first, prompts, seed)
        self.second = self._pool(_SECOND if over else (), second, prompts, seed + 1)
        self._entry_router, self._second_router = router_named(first), router_named(second)
        self._joint = None if joint is None else JOINT[joint.kind]
        admission = plan.topology.admission
        self._admission = None if admission is None else ADMISSION[admission.kind]
        self._tracking = is_tracking(plan)
        everyone = self._pool(_EVERYONE, joint, prompts, seed) if joint else self.entry
        self.front = Front(
            self.entry,
            self.second,
            everyone,
            [worker.role for worker in plan.workers],
            joint or RouterPart(kind=""),
            admission,
            assigned_blocks=np.zeros(len(self._workers)),
        )
        self._position = {worker.index: i for i, worker in enumerate(self.entry.workers)}
        self._second_of: dict[int, int] = {}

    def use_caches(self, below: Below) -> None:
        """Routers may see what caches below the engines hold."""
        self.front.below = self.entry.below = below

    def _pool(self, roles: Sequence[str], options: RouterPart | None, prompts: Prompts, seed: int) -> Pool:
        plans = [worker for worker in self._plan.workers if worker.role in roles and worker.index in self._members]
        steps = [worker.max_step_tokens for worker in plans]
        return Pool([self._workers[worker.index] for worker in plans], steps, options, prompts, seed)

    # Where workers come and go

    def renew(self, members: set[int], silent: set[int]) -> None:
        """From now on routers choose among ``members``; ``silent`` ones do not answer, which nobody has noticed."""
        self._members, self._silent = members, silent
        first, second, joint = self._options
        front = self.front
        everyone = front.everyone
        lent = {everyone.workers[i].index for i in front.lent}
        self.entry = self._renewed(self.entry, _ENTRY, first, self._seed)
        self.second = self._renewed(self.second, _SECOND if self._over else (), second, self._seed + 1)
        front.everyone = self._renewed(everyone, _EVERYONE, joint, self._seed) if joint else self.entry
        front.entry, front.second = self.entry, self.second
        front.roles = [self._plan.workers[worker.index].role for worker in front.everyone.workers]
        front.lent = {i for i, worker in enumerate(front.everyone.workers) if worker.index in lent}
        self._position = {worker.index: i for i, worker in enumerate(self.entry.workers)}

    def _renewed(self, old: Pool, roles: Sequence[str], options: RouterPart | None, seed: int) -> Pool:
        pool = self._pool(roles, options, self._prompts, seed)
        pool.succeed(old, [i for i, worker in enumerate(pool.workers) if worker.index in self._silent])
        return pool

    @property
    def is_open(self) -> bool:
        """Whether there are workers for all that a request needs."""
        if self.front.everyone is not self.entry:
            roles = set(self.front.roles)
            return bool(roles) and (not self._over or ({"prefill", "decode"} <= roles or "mixed" in roles))
        return bool(self.entry.workers) and (not self._over or bool(self.second.workers))

    def forget(self, row: int) -> None:
        """The request begins anew, or is over."""
        index = self._second_of.pop(row, None)
        if index is not None:
            self.front.assigned_blocks[index] -= self._blocks(row)

    def lengthen(self, row: int, tokens: int) -> None:
        """The request's prompt has so many tokens from now on."""
        self._inputs[row] = tokens

    def sent_to_silent(self, row: int, worker: int) -> None:
        """A request has gone to a worker that does not answer."""
        for pool in (self.entry, self.second):
            pool.note_sent(worker, int(self._inputs[row]))
        if self.front.everyone is not self.entry:
            self.front.everyone.note_sent(worker, int(self._inputs[row]))

    # What routers decide

    def enter(self, row: int, now: float) -> Decision | str:
        """Who takes the request, or why nobody does."""
        if self._joint is None and self._admission is None and len(self.entry.workers) == 1:
            return Decision(self.entry.workers[0].index)
        asked = self._asked(row, now)
        if self._joint is not None:
            decision = self._joint(self.front, asked)
        else:
            only = len(self.entry.workers) == 1
            position = 0 if only else self._entry_router(self.entry, asked)
            decision = Decision(self.entry.workers[position].index)
        if self._admission is not None:
            self.entry.look(now)
            reason = self._admission(self.front, asked, decision)
            if reason is not None:
                return reason
        if self._tracking:
            self._note(decision, asked)
        return decision

    def decode(self, row: int, now: float) -> Worker:
        """Who decodes a request whose prompt is done."""
        index = self._second_of.pop(row, None)
        if index is not None and index not in self._members:
            self.front.assigned_blocks[index] -= self._blocks(row)
            index = None
        if index is None and not self.second.workers:  # nobody is left: the request goes where it cannot be answered
            index = next(worker.index for worker in self._plan.workers if worker.role in _SECOND)
        elif index is None:
            only = len(self.second.workers) == 1
            position = 0 if only else self._second_router(self.second, self._asked(row, now))
            index = self.second.workers[position].index
        else:
            self.front.assigned_blocks[index] -= self._blocks(row)
        admission = self._plan.topology.admission
        if admission is not None and admission.decode_s is not None:
            self.front.decode_ends_s.append(now + admission.decode_s)
        return self._workers[index]

    def second_of(self, row: int) -> Worker | None:
        """Who will decode the request, where that was settled at its arrival."""
        index = self._second_of.get(row)
        return None if index is None else self._workers[index]

    def computed(self, worker: int, row: int, now: float) -> None:
        """A prompt is done, or lost."""
        if self._tracking and worker in self._position:
            self.entry.ledger.computed(self._position[worker], row, now)

    def _note(self, decision: Decision, asked: Asked) -> None:
        """Keep in mind what was decided until it comes about."""
        position = self._position.get(decision.first)
        if position is not None:
            device = int(self.entry.device_tokens(asked)[position])
            below = self.front.below
            cached = device if below is None else below.held(asked, decision.first, device, reach=decision.reach)
            seconds = self.entry.prompt_s(position, asked.input_tokens, cached)
            self.entry.ledger.sent(position, asked.row, seconds, asked.now_s)
        if decision.second is not None and decision.second != decision.first:
            self._second_of[asked.row] = decision.second
            self.front.assigned_blocks[decision.second] += self._blocks(asked.row)
        ends = self.front.decode_ends_s
        if len(ends) > 1024 and ends[512] < asked.now_s:
            del ends[:512]

    def _blocks(self, row: int) -> int:
        return -(-int(self._inputs[row]) // self.entry.block_size)

    def _asked(self, row: int, now: float) -> Asked:
        trace = self._trace
        session = -1 if trace.session is None else int(trace.session[row])
        blocks = _NO_BLOCKS if trace.hash_ids is None else trace.hashes(row)
        return Asked(row, self._inputs[row], session, blocks, trace.block_tokens, now)


def router_named(part: RouterPart | None) -> Callable[[Pool, Asked], int]:
    """The router of that name; a ``TopologyError`` with the nearest name if there is none."""
    name = "" if part is None else part.kind
    if name not in ROUTERS:
        raise TopologyError(unknown("routing", "router", name, ROUTERS))
    return ROUTERS[name]
