"""What one prefill pass of SGLang may admit: its token budgets, for the step-by-step oracle."""

from __future__ import annotations

CLIP_MAX_NEW_TOKENS = 4096
CONTINUE, NO_TOKEN, OTHER = "continue", "no token", "other"


class Adder:
    """Budgets of one planning: input tokens, chunk tokens, and memory now (``current``) and to the end (``total``)."""

    def __init__(self, engine, mixed_decodes):
        self.engine, self.tree, self.page_size = engine, engine.tree, engine.page_size
        self.ratio = engine.ratio
        self.running = engine.running.reqs
        self.input_left = engine.max_prefill_tokens - mixed_decodes
        self.chunk_left = None if engine.chunk_size is None else engine.chunk_size - mixed_decodes
        self.current_offset = mixed_decodes
        future = 0
        for r in self.running:
            future += min(r.max_new_tokens - r.outputs, CLIP_MAX_NEW_TOKENS) * (
                1.0 if r.ignore_eos and engine.reserve_known else self.ratio
            )
        self.total_offset = mixed_decodes + future
        self.admitted = []
        self.new_chunked = None
        self.lives = None

    def total_left(self):
        return self.engine.free + self.tree.evictable - self.total_offset

    def current_left(self):
        return self.engine.free + self.tree.evictable - self.current_offset

    def paged(self, tokens):
        return self.engine.pages(tokens) * self.page_size

    def state(self):
        if not (self.total_left() > 0 and self.current_left() > 0):
            return NO_TOKEN
        if self.input_left <= 0 or (self.chunk_left is not None and self.chunk_left <= 0):
            return OTHER
        return CONTINUE

    def charge(self, extend, max_new):
        now = self.paged(extend) + self.page_size
        self.total_offset += now + max_new
        self.current_offset += now
        self.input_left -= self.paged(extend)
        if self.chunk_left is not None:
            self.chunk_left -= self.paged(extend)

    def admit(self, r, extend, chunked):
        r.extend_end = r.prefix_len + extend
        self.admitted.append(r)
        if chunked:
            self.new_chunked = r
        self.charge(extend, 0 if chunked else min(r.max_new_tokens, CLIP_MAX_NEW_TOKENS))

    def add_chunked(self, r):
        """The next chunk of the prompt in progress comes first and always goes on; returns it if not its last."""
        left = min(self.chunk_left, int(self.total_left()))
        left = left if left > 0 else self.chunk_left
        wanted = r.fill_length - r.prefix_len
        chunk = min(wanted, left)
        r.extend_end = r.prefix_len + chunk
        self.admitted.append(r)
        self.charge(chunk, 0 if wanted > left else min(r.max_new_tokens, CLIP_MAX_NEW_TOKENS))
        return r if wanted > left else None

    def add(self, r):
        if r.ignore_eos and self.tree.disabled:
            return self.add_of_known_length(r)
        self.tree.lock(r.node)  # what it would reuse cannot be evicted for it
        verdict, extend, chunked = self.choose(r)
        if verdict is None:
            r.lock = r.node
            self.tree.lock(r.lock)
            self.admit(r, extend, chunked)
        self.tree.unlock(r.node)
        return self.state() if verdict is None else verdict

    def choose(self, r):
        """(refusal or None, tokens of this pass, whether more will follow)."""
        extend = r.fill_length - r.prefix_len
        max_new = min(max(r.max_new_tokens - r.outputs, 0), CLIP_MAX_NEW_TOKENS)
        if not extend + max_new + self.page_size < self.total_left():
            return NO_TOKEN, 0, False
        strict = self.chunk_left is None or self.engine.within_budget
        if strict and self.admitted and self.paged(extend) >= self.input_left:
            return OTHER, 0, False
        if self.chunk_left is None:
            return None, extend, False
        if self.paged(extend) <= self.chunk_left:
            return None, extend, False
        end = r.prefix_len + self.chunk_left // self.page_size * self.page_size
        chunk = end // self.page_size * self.page_size - r.prefix_len
        return (None, chunk, True) if chunk > 0 else (OTHER, 0, False)

    def add_of_known_length(self, r):
        """Without a cache and with lengths that are limits: admit if memory holds at each coming end of a request."""
        extend = r.fill_length - r.prefix_len
        paged = self.paged(extend) + self.page_size
        if paged > min(self.current_left(), self.total_left()):
            return NO_TOKEN
        self.note_life(r)
        left = self.current_left() - paged
        freed = 0
        for i, (remaining, occupied) in enumerate(self.lives):
            beside = len(self.lives) - i
            if left + freed - remaining * beside <= beside:
                return NO_TOKEN
            freed += occupied
        if self.chunk_left is None or extend <= self.chunk_left:
            self.admit(r, extend, False)
        elif self.chunk_left <= 0:
            return OTHER
        else:
            self.admit(r, self.chunk_left, True)
        return self.state()

    def note_life(self, r):
        """Keep (tokens still to come, tokens held at the end) of all requests, shortest first."""

        def life(q):
            ratio = 1.0 if q.ignore_eos else self.ratio
            return q.max_new_tokens * ratio - q.outputs, q.input_length + q.outputs

        if self.lives is None:
            known = [life(q) for q in (r, *self.running, *self.admitted)]
            self.lives = sorted((x for x in known if x[0] > 0), key=lambda x: x[0])
        elif life(r)[0] > 0:
            at = next((i for i, x in enumerate(self.lives) if life(r)[0] <= x[0]), None)
            # SGLang's own loop leaves the last index, not the end, when none is longer
            self.lives.insert(max(len(self.lives) - 1, 0) if at is None else at, life(r))
