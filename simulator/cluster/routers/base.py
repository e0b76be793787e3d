"""What routers are given to decide by: a request as it arrives, pools of workers as they can be seen, the options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.routers.ledger import Ledger
from simulator.cluster.schema import AdmissionPart, RouterPart
from simulator.cost.prediction import decode_seconds, prompt_seconds
from simulator.cost.table import step_cost_record
from simulator.engine.engine import Engine, Survey
from simulator.kv.content import block_keys

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RUNNING, WAITING, HOLDING, FREE_BLOCKS, BLOCKS, PENDING_TOKENS = range(6)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as a router sees it."""

    row: int
    input_tokens: int
    session: int
    hash_ids: Ints
    block_tokens: int
    now_s: float


class Candidate(Protocol):
    """A worker as a router sees it."""

    index: int

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens a second with full batches (from the cost model; a real router would have measured it)."""

    def pass_on(self) -> None:
        """Take the engine's news to the cluster."""

    @property
    def engine(self) -> Engine:
        """What the worker runs."""


@dataclass
class Prompts:
    """Keys of the blocks of prompts, as routers hash them; the last prompt's are kept.

    ``private``: by row, whether the prompt shares nothing with any other.
    """

    content: Any
    private: NDArray[np.bool_]
    block_size: int
    _row: int = -1
    _keys: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def keys(self, row: int, tokens: int) -> Ints:
        """Chained keys of the whole blocks of the row's first ``tokens`` tokens."""
        if row != self._row or self._keys.size < tokens // self.block_size:
            self._keys = block_keys(self.content, row, tokens, self.block_size)
            self._row = row
        return self._keys[: tokens // self.block_size]


class Pool:
    """Workers that a router chooses from, and what it remembers between requests.

    ``step_tokens``: tokens of a step, by worker; ``options``: the router's, as the topology gives them.
    """

    def __init__(
        self,
        workers: Sequence[Candidate],
        step_tokens: Sequence[int] = (),
        options: RouterPart | None = None,
        prompts: Prompts | None = None,
        seed: int = 0,
    ) -> None:
        self.workers = list(workers)
        self.options = options or RouterPart(kind="")
        self.prompts = prompts
        self.below: Below | None = None
        self._survey = Survey([worker.engine for worker in self.workers]) if self.workers else None
        self.gauges = self._survey.gauges if self._survey else np.zeros((0, 6))
        self.prefill_tokens_per_s = np.array([worker.prefill_tokens_per_s for worker in self.workers])
        self._costs = [step_cost_record(worker.engine.spec.cost) for worker in self.workers]
        self._step_tokens = list(step_tokens) or [1 << 60] * len(self.workers)
        self.block_size = self.workers[0].engine.block_size if self.workers else 1
        self.ledger = Ledger(len(self.workers))
        self.random = np.random.default_rng([seed, 0xD15C])
        self.turn = 0
        self._answering: list[int] | None = None  # all
        self.session_home: dict[int, int] = {}
        self.block_home: dict[int, set[int]] = {}

    def succeed(self, old: Pool, silent: Sequence[int]) -> None:
        """Take over what another pool of some of the same workers remembers; ``silent`` ones (positions here) no
        longer answer, and are seen as they were."""
        place = {worker.index: i for i, worker in enumerate(self.workers)}
        here = [place.get(worker.index, -1) for worker in old.workers]
        for i, position in enumerate(here):
            if position >= 0:
                self.gauges[position] = old.gauges[i]
        self.below, self.random, self.turn = old.below, old.random, old.turn
        self.ledger.succeed(old.ledger, here)
        self.session_home = {key: here[at] for key, at in old.session_home.items() if here[at] >= 0}
        self.block_home = {key: {here[i] for i in at if here[i] >= 0} for key, at in old.block_home.items()}
        if silent:
            self._answering = [i for i in range(len(self.workers)) if i not in set(silent)]
            answering = [self.workers[i].engine for i in self._answering]
            self._survey = Survey(answering) if answering else None

    def note_sent(self, index: int, tokens: int) -> None:
        """A request has gone to a worker that does not answer: the router counts it itself."""
        for i, worker in enumerate(self.workers):
            if worker.index == index:
                self.gauges[i, WAITING] += 1
                self.gauges[i, PENDING_TOKENS] += tokens

    def look(self, now: float) -> Floats:
        """Every worker's load at ``now``: workers x (running, waiting, holding, free, all blocks, pending tokens)."""
        if self._answering is not None:
            if self._survey is not None:
                for i in self._survey.look(now):
                    self.workers[self._answering[i]].pass_on()
                self.gauges[self._answering] = self._survey.gauges
            return self.gauges
        if self._survey is not None:
            for i in self._survey.look(now):
                self.workers[i].pass_on()
        return self.gauges

    def requests(self) -> Floats:
        """Requests at each worker, as last looked at."""
        return self.gauges[:, RUNNING] + self.gauges[:, WAITING] + self.gauges[:, HOLDING]

    def used_blocks(self) -> Floats:
        """Blocks that requests hold at each worker, as last looked at."""
        return self.gauges[:, BLOCKS] - self.gauges[:, FREE_BLOCKS]

    def device_tokens(self, request: Asked) -> Ints:
        """Leading prompt tokens in each worker's own prefix cache, at least one left out; as its events tell."""
        found = np.zeros(len(self.workers), np.int64)
        prompts = self.prompts
        if prompts is None or self._survey is None or prompts.private[request.row]:
            return found
        tokens = request.input_tokens - 1
        held = self._survey.overlap(prompts.content, request.row, tokens, prompts.keys(request.row, tokens))
        found[slice(None) if self._answering is None else self._answering] = held
        return found

    def prompt_s(self, position: int, tokens: int, cached: int) -> float:
        """Predicted seconds to compute a prompt of which ``cached`` tokens are there, alone on the worker."""
        rest = max(tokens - cached, 1)
        return float(prompt_seconds(self._costs[position], rest, tokens - rest, self._step_tokens[position]))

    def tpot_s(self, position: int, tokens: int) -> float:
        """Predicted seconds of a decode step with one more request of ``tokens`` tokens, as last looked at."""
        gauge = self.gauges[position]
        sequences = int(gauge[RUNNING] + gauge[WAITING] + gauge[HOLDING]) + 1
        context = int(gauge[BLOCKS] - gauge[FREE_BLOCKS]) * self.block_size + tokens
        return float(decode_seconds(self._costs[position], sequences, context))


@dataclass(frozen=True, slots=True)
class Decision:
    """What a router chose. Workers are the run's, by index.

    ``second``: who decodes; None: to be chosen when the prompt is done (or ``first`` itself, where it decodes too).
    ``reach``: whether prefixes may be fetched from beyond the worker's own node. The predictions are for admission.
    """

    first: int
    second: int | None = None
    reach: bool = True
    ttft_s: float = float("nan")
    tpot_s: float = float("nan")


class Below(Protocol):
    """Caches below the engines' own, as a router sees them."""

    def held(self, request: Asked, worker: int, device: int, *, reach: bool) -> int:
        """Leading prompt tokens that a worker has or can load, ``device`` of them in its own HBM."""

    def tiers(self, request: Asked, worker: int, device: int) -> tuple[int, int, int]:
        """The same beyond ``device``, in tokens: in host memory, on the SSD, in the pool."""

    def fetch_s(self, worker: int, tokens: int) -> float:
        """Predicted seconds to fetch ``tokens`` tokens' KV from another node to a worker with its links to itself."""


@dataclass
class Front:
    """The whole cluster as a router sees it that chooses more than one worker of one pool.

    ``everyone``: all workers, in order of index; ``roles``: theirs; ``assigned_blocks``: blocks of prompts that were
    given to each worker for decoding and are not there yet; ``lent``: machines that do the other pool's work.
    """

    entry: Pool
    second: Pool
    everyone: Pool
    roles: Sequence[str]
    options: RouterPart
    admission: AdmissionPart | None = None
    below: Below | None = None
    assigned_blocks: Floats = field(default_factory=lambda: np.zeros(0))
    lent: set[int] = field(default_factory=set)
    decode_ends_s: list[float] = field(default_factory=list)


def least(values: Floats) -> int:
    """Position of the smallest value, the first of equals."""
    return int(values.argmin())
