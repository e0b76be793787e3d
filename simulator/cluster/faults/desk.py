"""The fault desk of a run: takes workers down and up, tells routers, and sees to the requests that were lost.

A worker dies at a moment; what it had is gone. Routers and clients learn of it at once where connections break, else
from health checks, or when it starts again; until then requests still go there. Then each of them is sent again, as
often as is allowed, with its prompt to be computed anew; or it fails, with its cause.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from simulator.cluster.faults.attempts import Attempts, go_on
from simulator.cluster.faults.plan import FaultPlan
from simulator.cluster.processes import Worker
from simulator.cluster.result import FAILED, REJECTED, UNFINISHED
from simulator.engine.engine import Engine

if TYPE_CHECKING:
    from simulator.cluster.run import Cluster

NO_WORKER = "no worker is left that could take it"
NOT_SENT = "never sent: what its client waits for does not come"
NOT_FINISHED = "it waits for what does not come: a worker, or KV over a link that is cut"


class FaultDesk:
    """Who is up, who is known to be, and where each request stands."""

    def __init__(self, cluster: Cluster, plan: FaultPlan) -> None:
        self.cluster, self.plan = cluster, plan
        rows = len(cluster.trace)
        loads = None if cluster.caches is None else cluster.caches.columns
        self.attempts = Attempts(rows, cluster.desk, cluster.moved, loads)
        self.open = rows - int((cluster.state == REJECTED).sum())
        self.down_s = np.zeros(len(cluster.workers))
        self.crashes = 0
        self.slowdowns: list[dict[int, float]] = [{} for _ in cluster.workers]
        self._members = set(range(len(cluster.workers)))
        self._off: set[int] = set()  # those that autoscaling has not switched on
        self._silent: set[int] = set()
        self._died_s: dict[int, float] = {}
        self._lost: dict[int, dict[int, int]] = {}  # worker -> row -> its attempt
        self._made: dict[int, int] = {}  # output tokens that clients of lost requests have of the attempt
        self._held: list[tuple[int, float]] = []
        for worker in cluster.workers:
            worker.at = set()
            worker.unanswered = partial(self._unanswered, worker)

    # What the cluster asks

    def admits(self, row: int, now: float) -> bool:
        """A request comes to the routers: whether they can take it now. It is held, or turned away, otherwise."""
        if self.cluster.state[row] != UNFINISHED:
            return False
        if self.cluster.dispatch.is_open:
            return True
        if self.plan.waits:
            self._held.append((row, now))
        else:
            self.end(row, FAILED if self.attempts.number[row] else REJECTED, NO_WORKER, now)
        return False

    def _unanswered(self, worker: Worker, row: int, now: float) -> None:
        """A request has come to a worker that is down."""
        if worker.index in self._silent:
            self.cluster.dispatch.sent_to_silent(row, worker.index)
        else:
            self.cluster.agenda.add(now, partial(self._refused, row, worker, int(self.attempts.number[row])))

    def finished(self, worker: Worker, row: int) -> None:
        """An engine has made the last token."""
        if worker.at is not None:
            worker.at.discard(row)
        self.open -= 1

    def failed(self, row: int, now: float, reason: str) -> None:
        """A request ends without an answer, unless it may be sent again; engines that still work on it let it go."""
        for index in (int(self.cluster.prefill_worker[row]), int(self.cluster.decode_worker[row])):
            at = self.cluster.workers[index].at if index >= 0 else None
            if at is not None and row in at:
                self._take_out(row, self.cluster.workers[index], now)
        self.begin_anew(row, now, reason)

    # Workers

    def die(self, index: int, silent: bool, now: float) -> bool:
        """A worker loses everything. Whether it was up."""
        worker = self.cluster.workers[index]
        if worker.down:
            return False
        worker.die(now)
        self.crashes += 1
        self._died_s[index] = now
        self._silent.add(index)
        assert worker.at is not None, "kept from the start"
        made = worker.engine.progress()
        lost = self._lost[index] = {}
        for row in sorted(worker.at | self._promised_to(index)):
            lost[row] = int(self.attempts.number[row])
            self._cut(row, worker, made.get(row, 0))
        worker.at.clear()
        if self.cluster.caches is not None:
            self.cluster.caches.lose("host", [index], now)
        if silent:
            self._tell_routers()
            at = self.plan.health.noticed_s(now)
            self.cluster.agenda.add(at, partial(self._noticed, index, now))
        else:
            self._noticed(index, now, now)
        return True

    def _promised_to(self, index: int) -> set[int]:
        """Requests that a decode engine will be asked to take; KV of theirs may lie in its host memory."""
        cluster = self.cluster
        theirs = (cluster.decode_worker == index) & (cluster.state == UNFINISHED)
        return set(np.flatnonzero(theirs & np.isnan(cluster.desk.last_token_s)).tolist())

    def _cut(self, row: int, worker: Worker, made: int) -> None:
        """What a dying worker held of a request: nothing moves from or to it any more."""
        cluster, now = self.cluster, self._died_s[worker.index]
        self._note_tokens(row, made)
        if cluster.caches is not None:
            cluster.caches.forget(worker, row)
        if cluster.handover is not None and self._is_handed_over(row):
            cluster.handover.stop(row, now)
            if cluster.prefill_worker[row] == worker.index:
                cluster.handover.prompt_slot(row)
            if cluster.decode_worker[row] == worker.index:
                cluster.moved.decode_slot[row] = -1

    def _note_tokens(self, row: int, made: int) -> None:
        if np.isnan(self.cluster.desk.first_token_s[row]):
            return
        self._made[row] = max(made, 1)

    def _is_handed_over(self, row: int) -> bool:
        return not np.isnan(self.cluster.moved.entered_s[row])

    def _noticed(self, index: int, died_s: float, now: float) -> None:
        """Everybody knows that a worker is dead: it gets nothing more, and what it had is sent again."""
        if self._died_s.get(index) != died_s or index not in self._silent:
            return
        self._silent.discard(index)
        self._members.discard(index)
        self._tell_routers()
        worker = self.cluster.workers[index]
        lost = self._lost.pop(index, {})
        assert worker.at is not None, "kept from the start"
        for row in sorted(worker.at):  # sent there since
            lost[row] = int(self.attempts.number[row])
        worker.at.clear()
        for row, attempt in sorted(lost.items()):
            self._resolve(row, attempt, worker, now)

    def come_up(self, index: int, now: float) -> None:
        """A worker has started again, empty; routers take it back with its next successful probe."""
        cluster, died_s = self.cluster, self._died_s[index]
        self._noticed(index, died_s, now)  # connections of before are refused at the latest now
        del self._died_s[index]
        self.down_s[index] += now - died_s
        self.renew_engine(index, now)
        if cluster.caches is not None:
            cluster.caches.bring_back("host", [index], now)
        cluster.agenda.add(self.plan.health.back_s(now), partial(self._take_back, index))

    def _take_back(self, index: int, now: float) -> None:
        if self.cluster.workers[index].down:
            return
        self._members.add(index)
        self._tell_routers()
        self._let_in(now)

    def _tell_routers(self) -> None:
        self.cluster.dispatch.renew(self._members - self._off, set(self._silent))

    def _let_in(self, now: float) -> None:
        """Requests that waited for a worker, if there is one."""
        if self.cluster.dispatch.is_open:
            held, self._held = self._held, []
            for row, _ in held:
                self.cluster.source.add(row, now)

    def set_off(self, workers: set[int]) -> None:
        """These are off at the start."""
        self._off = set(workers)
        self._tell_routers()

    def switch_on(self, index: int, now: float) -> None:
        """Routers may send to a worker."""
        self._off.discard(index)
        self._tell_routers()
        self._let_in(now)

    def switch_off(self, index: int) -> None:
        """Routers send nothing more to a worker; what it has it finishes."""
        self._off.add(index)
        self._tell_routers()

    def is_idle(self, index: int) -> bool:
        """Whether a worker has nothing to do, and no request whose way through it is settled."""
        cluster = self.cluster
        prompts = (cluster.prefill_worker == index) & np.isnan(cluster.moved.prompt_done_s)
        theirs = (prompts | (cluster.decode_worker == index)) & (cluster.state == UNFINISHED)
        return not cluster.workers[index].at and not (theirs & np.isnan(cluster.desk.last_token_s)).any()

    def renew_engine(self, index: int, now: float) -> None:
        """A worker that was off has a new engine, empty."""
        cluster, worker = self.cluster, self.cluster.workers[index]
        worker.catch_up(now)
        worker.live(Engine(worker.engine.spec, cluster.content, cluster.desk.record), now)
        if self.slowdowns[index]:
            worker.set_pace(self.pace(index), now)

    def pace(self, index: int) -> float:
        """How many times as long the worker's steps take."""
        factor = 1.0
        for one in self.slowdowns[index].values():
            factor *= one
        return factor

    # Requests

    def _refused(self, row: int, worker: Worker, attempt: int, now: float) -> None:
        if worker.at is not None:
            worker.at.discard(row)
        self._resolve(row, attempt, worker, now)

    def _resolve(self, row: int, attempt: int, worker: Worker, now: float) -> None:
        """A request was at a worker that is known to be dead: whoever else holds a part of it lets go."""
        cluster = self.cluster
        if cluster.state[row] != UNFINISHED or self.attempts.number[row] != attempt:
            return
        if not np.isnan(cluster.desk.last_token_s[row]):  # it had ended in the same instant
            return
        reason = f"worker {cluster.plan.workers[worker.index].name} died"
        if cluster.handover is not None and self._is_handed_over(row):
            source, target = int(cluster.prefill_worker[row]), int(cluster.decode_worker[row])
            cluster.handover.stop(row, now)
            if target == worker.index:
                self._leave_source(row, cluster.workers[source], now)
            elif not np.isnan(cluster.moved.prompt_done_s[row]) and cluster.handover.source_lost(row, now):
                return
            elif target >= 0:
                self._leave_target(row, cluster.workers[target], now)
            if self.attempts.number[row] != attempt or cluster.state[row] != UNFINISHED:
                return
        self.begin_anew(row, now, reason)

    def _leave_source(self, row: int, source: Worker, now: float) -> None:
        """The decode engine has died: its prompt's KV is kept until the lease ends, or is not computed any more."""
        cluster = self.cluster
        assert cluster.handover is not None and source.at is not None, "asked for handed-over requests only"
        slot = cluster.handover.prompt_slot(row)
        if slot >= 0:
            source.at.discard(row)
            assert cluster.plan.transfer is not None, "there is a handover"
            pulled = cluster.plan.transfer.mode == "pull"
            ends_s = now + (cluster.plan.transfer.lease.seconds if pulled else 0.0)
            release = partial(_release, source, slot, len(source.lives))
            cluster.agenda.add(ends_s, release)
        elif row in source.at:
            self._take_out(row, source, now)

    def _leave_target(self, row: int, target: Worker, now: float) -> None:
        """The prefill engine has died: the decode engine forgets the request."""
        cluster = self.cluster
        assert target.at is not None, "kept from the start"
        slot = int(cluster.moved.decode_slot[row])
        if slot >= 0:
            cluster.moved.decode_slot[row] = -1
            target.at.discard(row)
            target.abandon(slot, False, now)
        elif row in target.at:
            self._take_out(row, target, now)

    def _take_out(self, row: int, worker: Worker, now: float) -> None:
        """An engine that is alive is told that nobody waits for a request any more."""
        assert worker.at is not None, "kept from the start"
        worker.at.discard(row)
        if worker.down:
            return
        worker.withdraw(row, now)
        self.cluster.dispatch.computed(worker.index, row, now)
        if self.cluster.caches is not None:
            self.cluster.caches.forget(worker, row)

    def begin_anew(self, row: int, now: float, reason: str) -> None:
        """Send a request again, or let it fail."""
        cluster, attempts = self.cluster, self.attempts
        made = self._made.pop(row, 0)
        if cluster.handover is not None:
            cluster.handover.forget(row, now)
        cluster.dispatch.forget(row)
        if cluster.caches is not None:
            cluster.caches.begin_anew(row)
        attempts.number[row] += 1
        if attempts.number[row] > self.plan.retry_limit or (made > 0 and self.plan.streamed == "fail"):
            attempts.lost_tokens[row] += made
            self.end(row, FAILED, reason, now)
            return
        if made > 0 and self.plan.streamed == "continue" and go_on(cluster, row, made):
            attempts.keep_first(row)
            attempts.kept_tokens[row] += made
        else:
            attempts.lost_tokens[row] += made
        attempts.begin_anew(row)
        cluster.prefill_worker[row] = cluster.decode_worker[row] = -1
        cluster.source.add(row, now + float(cluster.front.way_s[row]))

    def withdraw(self, row: int, now: float) -> None:
        """Nobody waits for a request any more: whoever has a part of it forgets it."""
        cluster = self.cluster
        workers = cluster.workers
        if cluster.handover is not None and self._is_handed_over(row):
            source = workers[int(cluster.prefill_worker[row])]
            slot = cluster.handover.prompt_slot(row)
            cluster.handover.stop(row, now)
            if slot >= 0 and source.at is not None:
                source.at.discard(row)
                source.transfer_ended(slot, now)
            if cluster.decode_worker[row] >= 0:
                self._leave_target(row, workers[int(cluster.decode_worker[row])], now)
        for worker in (
            workers[i] for i in {int(cluster.prefill_worker[row]), int(cluster.decode_worker[row])} if i >= 0
        ):
            if worker.at is not None and row in worker.at:
                self._take_out(row, worker, now)
        if cluster.handover is not None:
            cluster.handover.forget(row, now)
        cluster.dispatch.forget(row)
        self._held = [held for held in self._held if held[0] != row]

    def end(self, row: int, state: int, reason: str, now: float) -> None:
        """A request is over without an answer."""
        self.open -= 1
        self.cluster.end(row, state, reason, now)

    # The end of a run

    def summary(self, happened: Mapping[str, int]) -> dict[str, object]:
        """What happened, and what it cost."""
        number = self.attempts.number
        workers = zip(self.cluster.plan.workers, self.down_s.tolist(), strict=True)
        return {
            **{f"{kind}_faults": count for kind, count in happened.items()},
            "crashes": self.crashes,
            "down_s": {worker.name: seconds for worker, seconds in workers if seconds > 0},
            "requests_hit": int((number > 0).sum()),
            "attempts_lost": int(number.sum()),
            "lost_output_tokens": int(self.attempts.lost_tokens.sum()),
            "kept_output_tokens": int(self.attempts.kept_tokens.sum()),
        }

    def settle(self, end_s: float) -> None:
        """What is left when nothing happens any more: requests that will never end, workers that are still down."""
        for index, died_s in self._died_s.items():
            self.down_s[index] += max(end_s - died_s, 0.0)
        self.attempts.restore_first()
        begun = (self.cluster.prefill_worker >= 0) | (self.attempts.number > 0)
        for row in np.flatnonzero(self.cluster.state == UNFINISHED).tolist():
            waits_for = NOT_FINISHED if begun[row] else NOT_SENT
            self.cluster.give_reason(row, NO_WORKER if row in dict(self._held) else waits_for)


def _release(source: Worker, slot: int, lives: int, now: float) -> None:
    """The lease of a prompt that nobody came for ends."""
    if not source.down and len(source.lives) == lives:
        source.transfer_ended(slot, now)
