"""KV tokens and request rows of the SGLang oracle: counts only, since which slot a token gets changes nothing."""

from __future__ import annotations

from sglang_radix import RadixTree


class OutOfMemoryError(Exception):
    """Where SGLang itself stops with an error: a chunk under way goes on whatever memory says."""


class Memory:
    """The free pool and the tree beside it; ``page_size`` tokens are taken and given back together."""

    def __init__(self, settings):
        self.page_size = settings["page_size"]
        self.pool_size = self.free = settings["max_total_num_tokens"]
        self.max_running = self.free_rows = settings["max_running_requests"]
        self.tree = RadixTree(self.page_size, settings["disable_radix_cache"])

    def pages(self, tokens):
        return -(-tokens // self.page_size)

    def evict_for(self, wanted):
        if self.free < wanted and not self.tree.disabled:
            self.free += self.tree.evict(wanted - self.free)

    def checkpoint(self, r, up_to):
        """Give what ``r`` has computed to the tree, whole pages of it, and lock it there instead of before."""
        if self.tree.disabled:
            return
        tokens = r.tokens()
        length = self.tree.page_floor(min(up_to, r.fill_length))
        if min(up_to, r.fill_length) <= 0:
            return
        there, node = self.tree.insert(tokens, length)
        self.free += max(0, there - r.protected)  # our copies of what others cached meanwhile
        prompt = self.tree.page_floor(r.input_length)
        if 0 < prompt < length:
            self.tree.insert(r.prompt, prompt)  # cuts the leaf where the prompt ends
        self.tree.unlock(r.lock)
        self.tree.lock(node)
        r.lock = r.node = node
        r.protected = length

    def release(self, r, checkpoint):
        owned = r.committed if r.finished_len is None else min(r.committed, r.input_length + r.finished_len)
        if checkpoint:
            r.fill_length = r.input_length + r.outputs
            self.checkpoint(r, owned)
        self.free += (self.pages(r.committed) - r.protected // self.page_size) * self.page_size
        self.tree.unlock(r.lock)
        r.lock = None
        r.holds_kv = False
        self.free_rows += 1

    def decode_fits(self, reqs):
        need = sum(r.committed % self.page_size == 0 for r in reqs) * self.page_size
        self.evict_for(need)
        return self.free >= need

    def allocate_extend(self, reqs):
        new = sum(r.extend_end - r.prefix_len for r in reqs)
        self.evict_for(new if self.page_size == 1 else new + len(reqs) * self.page_size)
        self.free -= sum(self.pages(r.extend_end) - self.pages(r.prefix_len) for r in reqs) * self.page_size
        if self.free < 0:
            raise OutOfMemoryError("prefill out of memory")
        for r in reqs:
            self.free_rows -= not r.holds_kv
            r.holds_kv, r.committed = True, r.extend_end

    def allocate_decode(self, reqs):
        self.evict_for(len(reqs) * self.page_size)
        self.free -= sum(r.committed % self.page_size == 0 for r in reqs) * self.page_size
        if self.free < 0:
            raise OutOfMemoryError("decode out of memory")
        for r in reqs:
            r.committed += 1
