"""vLLM 0.32.0's scheduler in virtual time, one iteration at a time: the yardstick the fast engine is held against.

``run_case(settings, requests)`` takes the settings of a case (the keys of ``case.json``) and its requests (dicts with
``arrival_s``, ``input_length``, ``output_length`` and, where prefixes are shared, ``hash_ids``) and returns the rows
and steps of the case. Slow and simple on purpose: nothing here is compiled, skipped or foreseen.

How time runs. An engine's steps run one after another. It plans when a step has ended, or when it is idle; with
asynchronous scheduling it plans one step ahead. At one instant steps end first, then prefilled requests are handed
over, then requests arrive, then engines plan.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from vllm_blocks import PrefixNames
from vllm_scheduler import Request, Role, Scheduler, Step

HASHED_TOKENS = 512  # tokens of the prompt that one hash id stands for
OWN_TOKEN = 10_000_000  # token values from here on belong to one request alone

# (new, past) of every sequence with one new token (a decode, to the kernels), of the chunks of several, and how many
# sequences end their prefill with this step, whatever the length of its last chunk
StepSeconds = Callable[[Sequence[tuple[int, int]], Sequence[tuple[int, int]], int], float]
# (number of the step, its tokens, its sequences, whether it has chunks) -> seconds before its first kernel runs, and
# until it is launched
LaunchSeconds = Callable[[float, int, int, int, bool], tuple[float, float]]
# (start, seconds at full clocks, singles, chunks) -> seconds of a GPU that has a power limit, step after step
Pace = Callable[[float, float, Sequence[tuple[int, int]], Sequence[tuple[int, int]]], float]


def affine(step_time: dict[str, float]) -> StepSeconds:
    """The step time of the cases: a constant, so much a new token, so much a token computed before."""

    def seconds(decodes: Sequence[tuple[int, int]], chunks: Sequence[tuple[int, int]], _finished: int) -> float:
        work = [*decodes, *chunks]
        new, past = sum(n for n, _ in work), sum(p for _, p in work)
        return step_time["base_s"] + step_time["per_token_s"] * new + step_time["per_context_token_s"] * past

    return seconds


class Engine:
    """A scheduler, its steps in flight (one, or two with asynchronous scheduling), and its reads or sends."""

    scheduler_class: type[Scheduler] = Scheduler
    launch: LaunchSeconds | None = None
    pace: Pace | None = None

    def __init__(
        self, settings: dict[str, Any], role: Role, names: PrefixNames, seconds: StepSeconds, instant_s: float
    ) -> None:
        self.role = role
        self.seconds = seconds
        self.instant_s = instant_s
        self.depth = 2 if settings["async_scheduling"] else 1
        self.scheduler = self.scheduler_class(settings, role, names, self._read_starts)
        self.in_flight: deque[tuple[float, Step, tuple[list[Request], list[Request]]]] = deque()
        self.free_s = 0.0  # when the last planned step ends
        self.launched_s = 0.0  # when the last batch with prompts was launched
        self.launched = 0
        self.reads: list[tuple[float, Request]] = []  # end of each read not reported yet
        self.sends: list[tuple[float, Request]] = []
        self.preemptions: Counter[int] = Counter()
        self.steps: list[dict[str, Any]] = []
        self.now = 0.0
        self.wrote: Callable[[Request, float], None] = lambda r, now: None
        self.finished: Callable[[Request, float], None] = lambda r, now: None
        self.read_starts: Callable[[Request, float, int], None] = lambda r, now, blocks: None
        self.load_starts: Callable[[Request, float, int], int] = lambda r, now, hits: 0
        self.scheduler.on_load = lambda r, hits: self.load_starts(r, self.now, hits)

    def _read_starts(self, r: Request, blocks: int) -> None:
        self.read_starts(r, self.now, blocks)

    def next_time(self) -> float:
        if self.in_flight:
            return self.in_flight[0][0]
        return min((t for t, _ in self.reads + self.sends), default=math.inf)

    def _ended(self, transfers: list[tuple[float, Request]]) -> list[Request]:
        """Take from ``transfers`` those that have ended, in order of their ends (vLLM keeps a set, without order)."""
        ended = sorted((pair for pair in transfers if pair[0] <= self.now + self.instant_s), key=lambda pair: pair[0])
        over = [r for _, r in ended]
        transfers[:] = [(t, r) for t, r in transfers if t > self.now + self.instant_s]
        return over

    def _transfer_over(self) -> bool:
        return not self.in_flight and self.next_time() <= self.now + self.instant_s

    def complete(self, now: float) -> bool:
        """Book the oldest step in flight if it has ended."""
        self.now = now
        if not self.in_flight or self.in_flight[0][0] > now + self.instant_s:
            return False
        _, step, (read, sent) = self.in_flight.popleft()
        self.scheduler.take_output(step, lambda r: self.finished(r, now), lambda r: self.wrote(r, now))
        self.scheduler.report_transfers(read, sent)
        return True

    def plan(self, now: float, keep_steps: int) -> None:
        """Plan until as many steps are in flight as may be, or there is nothing to plan."""
        self.now = now
        while len(self.in_flight) < self.depth and (self.scheduler.has_work() or self._transfer_over()):
            step = self.scheduler.plan()
            self.preemptions.update(r.index for r in step.preempted)
            if step.tokens:
                self._launch(step, keep_steps)
            elif self.in_flight:
                break  # the next look at arrivals and transfers is at the running step's end
            else:
                read, sent = self._ended(self.reads), self._ended(self.sends)
                if not read and not sent:
                    break
                self.scheduler.report_transfers(read, sent)

    def _launch(self, step: Step, keep_steps: int) -> None:
        """Transfers that have ended by now are reported at the end of the step planned now."""
        work = [(n, step.past[r]) for r, n in step.tokens.items()]
        singles, chunks = [w for w in work if w[0] == 1], [w for w in work if w[0] > 1]
        prepare, launch = 0.0, 0.0
        if self.launch is not None:
            prepare, launch = self.launch(self.now, self.launched, sum(n for n, _ in work), len(work), bool(chunks))
        self.launched += 1
        begin = max(self.now, self.launched_s) if chunks else self.now  # two batches with prompts, planned from idle
        start = max(begin + prepare, self.free_s)
        seconds = self.seconds(singles, chunks, len(step.sampling) - len(step.decoding))
        self.free_s = start + (seconds if self.pace is None else self.pace(start, seconds, singles, chunks))
        if chunks:
            self.free_s = max(self.free_s, begin + launch)
        if self.in_flight and launch:  # the loop that launches looks at the results before only afterwards
            end, *rest = self.in_flight.pop()
            self.in_flight.append((max(end, begin + launch), *rest))
        if chunks:
            self.launched_s = begin + launch
        self.in_flight.append((self.free_s, step, (self._ended(self.reads), self._ended(self.sends))))
        if len(self.steps) < keep_steps:
            self.steps.append(
                {
                    "engine": self.role.name.lower(),
                    "start_s": start,
                    "end_s": self.free_s,
                    "tokens": {r.index: n for r, n in step.tokens.items()},
                    "preempted": sorted(r.index for r in step.preempted),
                }
            )


class Case:
    """One run: the requests, the engines they pass through, and what is written down about them."""

    engine_class: type[Engine] = Engine

    def __init__(
        self,
        settings: dict[str, Any],
        requests: list[dict[str, Any]],
        seconds: StepSeconds | None,
        instant_s: float,
        launch: LaunchSeconds | None = None,
        pace: Callable[[], Pace] | None = None,
    ) -> None:
        self.settings, self.requests, self.instant_s = settings, requests, instant_s
        self.token_times: list[list[float]] = [[] for _ in requests]
        self.transfer: list[dict[str, Any]] = [{} for _ in requests]
        self.handed: deque[Request] = deque()
        names = PrefixNames()
        seconds = seconds or affine(settings["step_time"])

        def engine(role: Role, own: dict[str, Any]) -> Engine:
            made = self.engine_class({**settings, **own}, role, names, seconds, instant_s)
            made.launch = launch
            made.pace = pace() if pace else None
            return made

        self.prefill_of: dict[int, Request] = {}
        self.loads: dict[int, tuple[float, float, int]] = {}
        if settings.get("disaggregated"):
            self.first, self.last = engine(Role.PREFILL, {}), engine(Role.DECODE, settings.get("decode", {}))
            self.first.finished = self._prefilled
            self.last.read_starts = self._read_starts
            self.engines = [self.first, self.last]
        else:
            self.first = self.last = engine(Role.COLOCATED, {})
            self.engines = [self.first]
        self.first.load_starts = self._load_starts
        self.last.wrote = lambda r, now: self.token_times[r.index].append(now)

    def _request(self, index: int, max_output: int, engine: Engine, to_read: bool = False) -> Request:
        row = self.requests[index]
        prompt, ids = row["input_length"], row.get("hash_ids")
        if ids:
            prompt = min(prompt, len(ids) * HASHED_TOKENS)
        content: list[int] = []
        if engine.scheduler.pool.prefix_caching:
            content = [OWN_TOKEN + index] * prompt
            if ids:
                content = [int(h) for h in ids for _ in range(HASHED_TOKENS)][:prompt]
        outside = 0 if to_read else row.get("outside", 0)
        return Request(index, prompt, max_output, content, to_read, outside)

    def _prefilled(self, r: Request, now: float) -> None:
        self.transfer[r.index]["prefill_end_s"] = now
        self.prefill_of[r.index] = r
        self.handed.append(r)

    def _read_starts(self, r: Request, now: float, blocks: int) -> None:
        times = self.settings["transfer"]
        end = now + times["setup_s"] + times["per_block_s"] * blocks
        self.transfer[r.index].update(read_start_s=now, read_end_s=end, blocks_read=blocks)
        self.last.reads.append((end, r))
        self.first.sends.append((end, self.prefill_of[r.index]))

    def _load_starts(self, r: Request, now: float, hits: int) -> int:
        """The prefix is loaded from below as far as it is there; returns the tokens that will be here."""
        times, size = self.settings["load"], self.settings["block_size"]
        blocks = max(self.requests[r.index]["there"] // size - hits, 0)
        end = now + times["setup_s"] + times["per_block_s"] * blocks
        self.loads[r.index] = (now, end, blocks)
        self.first.reads.append((end, r))
        return (hits + blocks) * size

    def run(self, keep_steps: int) -> None:
        todo = deque(sorted(range(len(self.requests)), key=lambda i: (self.requests[i]["arrival_s"], i)))
        now = 0.0
        while True:
            arrival = self.requests[todo[0]]["arrival_s"] if todo else math.inf
            upcoming = min(arrival, *(e.next_time() for e in self.engines))
            if upcoming == math.inf:
                break
            now = max(now, upcoming)
            booked = self.engines
            while booked:
                booked = [e for e in self.engines if e.complete(now)]
                while self.handed:
                    i = self.handed.popleft().index
                    self.last.scheduler.add(self._request(i, self.requests[i]["output_length"], self.last, True))
                while todo and self.requests[todo[0]]["arrival_s"] <= now + self.instant_s:
                    i = todo.popleft()
                    output = self.requests[i]["output_length"] if self.first is self.last else 1
                    self.first.scheduler.add(self._request(i, output, self.first))
                for e in self.engines:
                    if e in booked or not e.in_flight:
                        e.plan(now, keep_steps)

    def rows(self) -> list[dict[str, Any]]:
        rows = []
        for i, (request, times) in enumerate(zip(self.requests, self.token_times, strict=True)):
            if len(times) != request["output_length"]:
                raise ValueError(f"request {i}: {len(times)} of {request['output_length']} tokens; it can never fit")
            row = {
                "i": i,
                "arrival_s": request["arrival_s"],
                "input_length": request["input_length"],
                "output_length": request["output_length"],
                "first_token_s": times[0],
                "last_token_s": times[-1],
                "cached_tokens": self.first.scheduler.first_cached.get(i, 0),
                "preemptions": sum(e.preemptions[i] for e in self.engines),
                "token_sum_s": math.fsum(times),
            }
            rows.append(row | self.transfer[i])
        return rows


def run_case(
    settings: dict[str, Any],
    requests: list[dict[str, Any]],
    *,
    keep_steps: int = 0,
    step_seconds: StepSeconds | None = None,
    launch_seconds: LaunchSeconds | None = None,
    pace: Callable[[], Pace] | None = None,
    instant_s: float = 1e-12,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows (one a request) and the first ``keep_steps`` steps of each engine, as in a case's expected files.

    ``step_seconds`` replaces the case's affine step time, ``launch_seconds`` adds what the host needs to launch,
    ``pace`` makes what a power limit adds on one engine. Times no further apart than ``instant_s`` seconds are one
    instant.
    """
    case = Case(settings, requests, step_seconds, instant_s, launch_seconds, pace)
    case.run(keep_steps)
    steps = sorted((s for e in case.engines for s in e.steps), key=lambda s: (s["start_s"], s["engine"]))
    return case.rows(), steps
