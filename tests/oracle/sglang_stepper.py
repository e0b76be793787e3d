"""One-step-at-a-time simulator of SGLang 0.5.23's scheduler: plain objects, nothing clever, the judge of the fast engine.

``run_case(settings, requests)`` takes what the shared scheduler cases hold (``case.json``, the lines of the trace) and
gives the rows of ``expected.csv`` and every step. Names follow SGLang's where it has one.
"""

from __future__ import annotations

import math

from sglang_adder import CONTINUE, NO_TOKEN, OTHER, Adder
from sglang_case import ABORTED_PROMPT, Batch, Request
from sglang_memory import Memory
from sglang_radix import RadixTree, Tokens
from table_seconds import table_pace, table_seconds
from vllm_stepper import affine

INSTANT_S = 1e-9  # events closer than this are one instant
RETRACT_DECODE_STEPS = 20
WAITING_MATCHED = 128  # above so many waiting, lpm falls back to fcfs; so many are touched under fcfs
TOUCH_INTERVAL = 32
IN_BATCH_PREFIX = 32


class Stepper(Memory):
    def __init__(self, settings, requests):
        super().__init__(settings)
        s = settings
        self.overlap = s["overlap"]
        self.max_prefill_tokens = s["max_prefill_tokens"]
        self.chunk_size = s["chunked_prefill_size"] if s["chunked_prefill_size"] > 0 else None
        self.mixed = s["mixed_chunk"] and self.chunk_size is not None
        self.lpm = s["schedule_policy"] == "lpm" and not s["disable_radix_cache"]
        table = s.get("table")  # of a GPU with a power limit; its host times are not looked at
        self.seconds = affine(s["step_time"]) if table is None else table_seconds(table)
        self.pace = None if table is None else table_pace(table)
        self.reserve_known = s.get("reserve_known_lengths", True)
        self.within_budget = s.get("prompts_within_budget", False)
        self.longest = min(s["context_length"] - 1, self.pool_size - 1)
        self.ratio_init = min(0.7 * s["schedule_conservativeness"], 1.0)
        self.ratio_min = min(self.ratio_init * 0.14, 1.0)
        self.ratio_decay = (self.ratio_init - self.ratio_min) / 600
        self.ratio = self.ratio_init
        self.requests = [Request(i, line, s) for i, line in enumerate(requests)]
        self.todo = sorted(self.requests, key=lambda r: (r.arrival_s, r.index))[::-1]
        self.waiting = []
        self.running = Batch([])
        self.last = None
        self.chunked = None
        self.queue = []  # overlap: launched steps whose results are not processed yet: (batch copy, end)
        self.touch_calls = 0
        self.now = self.gpu_free = 0.0
        self.steps, self.retracted_now = [], []

    # -- the waiting queue

    def arrive(self):
        while self.todo and self.todo[-1].arrival_s <= self.now + INSTANT_S:
            r = self.todo.pop()
            r.max_new_tokens = max(0, min(r.max_new_tokens, self.longest - r.input_length - 1))
            room = self.pool_size - self.pages(r.input_length) * self.page_size - self.page_size - 1
            r.max_new_tokens = max(0, min(r.max_new_tokens, room))
            if r.input_length >= self.longest - 5:
                r.prompt, r.to_abort = Tokens().add(ABORTED_PROMPT, 1), True
            self.waiting.append(r)

    def match(self, r, limit):
        r.prefix_len, r.node = self.tree.match(r.tokens(), limit)

    def order_waiting(self):
        if not self.lpm or len(self.waiting) > WAITING_MATCHED:
            self.touch_waiting()
            return
        in_batch = RadixTree(1)
        late = set()
        for r in self.waiting:
            tokens = r.tokens()
            self.match(r, len(tokens))
            r.matched = min(r.prefix_len, len(tokens) - 1)
            if r.prefix_len <= IN_BATCH_PREFIX:
                if in_batch.match(tokens, len(tokens))[0] >= IN_BATCH_PREFIX:
                    late.add(r)
                else:
                    in_batch.insert(tokens, len(tokens))
        self.waiting.sort(key=lambda r: math.inf if r in late else -r.matched)

    def touch_waiting(self):
        """fcfs matches nothing while ordering, but now and then it refreshes what the queue will want."""
        if not self.waiting or self.tree.disabled:
            return
        self.touch_calls += 1
        if self.touch_calls % TOUCH_INTERVAL == 1:
            for r in reversed(self.waiting[:WAITING_MATCHED]):
                tokens = r.tokens()
                self.tree.match(tokens, len(tokens))

    # -- planning

    def plan(self):
        """The next step's batch, or None."""
        excluded = {self.chunked} if self.chunked else set()
        if self.chunked and self.chunked.extend_end > self.chunked.prefix_len:
            self.checkpoint(self.chunked, self.chunked.extend_end)
            self.chunked.prefix_len = self.chunked.extend_end
        last = self.last
        if last and last.mode != "decode":
            excluded.add(last.chunked)
            if last.keep([r for r in last.reqs if not r.finished and r not in excluded]):
                self.running.full = False
            if last.reqs and last is not self.running:
                if self.running.reqs:
                    self.running.reqs = self.running.reqs + last.reqs
                else:
                    self.running = last
        if self.running.keep([r for r in self.running.reqs if not r.finished]):
            self.running.full = False
        new = self.plan_prefill()
        if new is not None:
            return new
        return self.plan_decode() if self.running.reqs else None

    def free_places(self, held):
        return min(self.max_running - len(self.running.reqs), self.free_rows + held)

    def plan_prefill(self):
        running = self.running
        if not running.reqs:
            running.full = False
        if (running.full or not self.waiting) and self.chunked is None:
            return None
        if self.free_places(0) <= 0 and self.chunked is None:
            running.full = True
            return None
        self.order_waiting()
        adder = Adder(self, len(running.reqs) if self.mixed else 0)
        if self.chunked is not None:
            self.chunked.fill_length = self.chunked.input_length + self.chunked.outputs
            self.chunked = adder.add_chunked(self.chunked)
        for r in self.waiting:
            if adder.state() == OTHER:
                break
            if len(adder.admitted) >= self.free_places(sum(a.holds_kv for a in adder.admitted)):
                running.full = True
            if running.full:
                break
            r.fill_length = r.input_length + r.outputs
            self.match(r, r.fill_length - 1)
            r.protected = r.prefix_len
            verdict = adder.add(r)
            if verdict != CONTINUE:
                if verdict == NO_TOKEN:
                    running.full = bool(adder.admitted or running.reqs)
                break
        if not adder.admitted:
            return None
        admitted = set(adder.admitted)
        self.waiting = [r for r in self.waiting if r not in admitted]
        if adder.new_chunked is not None:
            assert self.chunked is None
            self.chunked = adder.new_chunked
        if self.chunked is not None:
            self.chunked.middle_chunks += 1
        batch = Batch(adder.admitted, "prefill", self.chunked)
        self.allocate_extend(batch.reqs)
        for r in batch.reqs:
            if not r.stain:
                r.cached += r.prefix_len - r.already_computed
                r.already_computed = r.extend_end
            r.is_retracted = False
        if self.mixed and running.reqs:
            self.mix(batch)
        return batch

    def mix(self, batch):
        running = self.running
        finishing = self.finishing_in_flight(running)
        if finishing:
            running.keep([r for r in running.reqs if r not in finishing])
            running.full = False
        if running.reqs and self.decode_fits(running.reqs):
            self.allocate_decode(running.reqs)
            for r in running.reqs:
                r.fill_length = r.input_length + r.outputs
                r.extend_end = r.committed
            batch.mode, batch.decoding = "mixed", tuple(running.reqs)
            batch.reqs = batch.reqs + running.reqs
            full = running.full
            self.running = Batch([])
            self.running.full = full

    def finishing_in_flight(self, batch):
        """Overlap: those whose token in flight is their last by length; they need no further step."""
        if not self.queue:
            return set()
        flying = set(self.queue[0][0].reqs)
        return {r for r in batch.reqs if r in flying and r.outputs + 1 >= r.max_new_tokens}

    def plan_decode(self):
        batch = self.running
        before = len(batch.reqs)
        finishing = self.finishing_in_flight(batch)
        batch.keep([r for r in batch.reqs if not r.finished and r not in finishing])
        if not batch.reqs:
            batch.full = False
            return None
        if not self.decode_fits(batch.reqs):
            if finishing:
                batch.full = False
                return None
            self.retract(batch)
        else:
            self.ratio = max(self.ratio - self.ratio_decay, self.ratio_min)
        if len(batch.reqs) < before:
            batch.full = False
        if not batch.reqs:
            return None
        self.allocate_decode(batch.reqs)
        batch.mode, batch.decoding = "decode", ()
        return batch

    def retract(self, batch):
        """Let go of requests, fewest outputs first, until the rest can decode. The batch stays in that order."""
        order = sorted(batch.reqs, key=lambda r: (r.outputs, -r.input_length), reverse=True)
        out = []
        while not out or not self.decode_fits(order):
            if len(order) == 1:
                break
            out.append(order.pop())
            self.let_go(out[-1], len(order))
        if len(order) <= 1 and not self.decode_fits(order):
            last = order.pop()
            self.let_go(last, 0)
            last.finished = True  # SGLang aborts it: it does not fit even alone
        batch.reqs = order
        outputs, limits = sum(r.outputs for r in order), sum(r.max_new_tokens for r in order)
        self.ratio = min(1.0, (outputs + RETRACT_DECODE_STEPS * len(order)) / (limits + 1))
        for r in out:
            r.retractions += 1
            self.retracted_now.append(r.index)
            self.waiting.append(r)

    def let_go(self, r, left):
        self.release(r, checkpoint=False)
        self.evict_for(left * RETRACT_DECODE_STEPS)
        r.prefix_len = r.protected = r.matched = r.extend_end = r.committed = r.middle_chunks = r.already_computed = 0
        r.node = None
        r.is_retracted = r.stain = True

    # -- running

    def launch(self, batch):
        tokens, singles, chunks = {}, [], []
        for r in batch.reqs:
            one = batch.mode == "decode" or r in batch.decoding
            past = r.committed - 1 if one else r.prefix_len
            tokens[r.index] = 1 if one else r.extend_end - past
            (singles if tokens[r.index] == 1 else chunks).append((tokens[r.index], past))
        start = max(self.now, self.gpu_free)
        seconds = self.seconds(singles, chunks, 0)
        self.gpu_free = start + (seconds if self.pace is None else self.pace(start, seconds, singles, chunks))
        self.steps.append(
            {
                "start_s": start,
                "end_s": self.gpu_free,
                "mode": batch.mode,
                "tokens": tokens,
                "retracted": self.retracted_now,
            }
        )
        self.retracted_now = []

    def process(self, batch, mode, reqs):
        for r in reqs:
            if mode == "decode":
                if not (self.overlap and (r.finished or r.is_retracted)):
                    r.append_output(self.now)
                    if r.finished:
                        self.release(r, checkpoint=True)
            elif (r.finished and r.middle_chunks <= 0) or r.is_retracted:
                pass
            elif r.middle_chunks > 0:
                r.middle_chunks -= 1
            else:
                r.append_output(self.now)
                if r.finished:
                    self.release(r, checkpoint=True)
                elif r not in batch.decoding:
                    self.checkpoint(r, r.extend_end)
                    r.prefix_len = r.extend_end
            if r.cached_seen is None:
                r.cached_seen = r.cached

    def take_result(self, batch):
        self.process(batch, batch.mode, batch.reqs)

    def idle(self):
        """Nothing runs and nothing waits: the ratio starts anew and the clock jumps. False when all is done."""
        assert not (self.waiting or self.running.reqs or self.chunked or self.queue), "stuck"
        self.ratio = self.ratio_init
        if self.todo:
            self.now = max(self.now, self.todo[-1].arrival_s)
        return bool(self.todo)

    def run(self):
        going = True
        while going:
            self.arrive()
            batch = self.plan()
            flying = None
            if batch is not None:
                self.launch(batch)
                flying = Batch(list(batch.reqs), batch.mode)
                flying.decoding = batch.decoding
                if self.overlap:
                    self.queue.append((flying, self.gpu_free))
                else:
                    self.now = self.gpu_free
            if self.overlap:
                if self.last is not None:
                    done, end = self.queue.pop(0)
                    self.now = max(self.now, end)
                    self.take_result(done)
                elif batch is None:
                    going = self.idle()
            elif batch is not None:
                self.take_result(flying)
            else:
                going = self.idle()
            self.last = batch


def run_case(settings, requests):
    """Rows as in ``expected.csv`` (and the times of every token under ``times``), and all steps."""
    stepper = Stepper(settings, requests)
    stepper.run()
    assert stepper.free + stepper.tree.evictable == stepper.pool_size, "KV tokens are lost"
    assert stepper.free_rows == stepper.max_running
    rows = [
        {
            "i": r.index,
            "arrival_s": r.arrival_s,
            "input_length": r.asked_input,
            "output_length": r.output_length,
            "first_token_s": r.times[0],
            "last_token_s": r.times[-1],
            "cached_tokens": r.cached_seen,
            "retractions": r.retractions,
            "token_sum_s": math.fsum(r.times),
            "times": r.times,
        }
        for r in stepper.requests
    ]
    return rows, stepper.steps
