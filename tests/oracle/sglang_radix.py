"""A plain radix tree of token sequences with the rules of SGLang's prefix cache, for the step-by-step oracle.

Sequences are kept as runs of equal tokens, because a prompt in a trace is a few hundred blocks of 512 equal tokens.
The tree knows counts only: how many of its tokens are locked by requests and how many could be evicted.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right


class Tokens:
    """A token sequence as maximal runs: ``values[i]`` fills positions up to ``ends[i]``."""

    def __init__(self):
        self.values = []
        self.ends = []

    def __len__(self):
        return self.ends[-1] if self.ends else 0

    def add(self, value, count):
        if count <= 0:
            return self
        if self.values and self.values[-1] == value:
            self.ends[-1] += count
        else:
            self.values.append(value)
            self.ends.append(len(self) + count)
        return self

    def copy(self):
        other = Tokens()
        other.values, other.ends = list(self.values), list(self.ends)
        return other

    def runs(self, start, stop):
        """The runs of ``[start, stop)`` as ((token, count), ...): what a page is known by."""
        out = []
        i = bisect_right(self.ends, start)
        while start < stop:
            end = min(self.ends[i], stop)
            out.append((self.values[i], end - start))
            start, i = end, i + 1
        return tuple(out)


def common_prefix(a, a_start, b, b_start, limit):
    """How many tokens ``a[a_start:]`` and ``b[b_start:]`` share from their start on, at most ``limit``."""
    i, j = bisect_right(a.ends, a_start), bisect_right(b.ends, b_start)
    done = 0
    while done < limit:
        if a.values[i] != b.values[j]:
            return done
        a_left, b_left = a.ends[i] - (a_start + done), b.ends[j] - (b_start + done)
        step = min(a_left, b_left)
        done += step
        i += step == a_left
        j += step == b_left
    return limit


class Node:
    """Tokens ``tokens[start:stop]``; a child is found by its first page."""

    def __init__(self, parent, tokens, start, stop, time):
        self.parent, self.tokens, self.start, self.stop, self.time = parent, tokens, start, stop, time
        self.children = {}
        self.locks = 0

    def __len__(self):
        return self.stop - self.start


class RadixTree:
    """Prefix tree of cached KV. Times are (tick, -depth): within one match the deeper node counts as older."""

    def __init__(self, page_size, disabled=False):
        self.page_size, self.disabled = page_size, disabled
        self.ticks = 0
        self.root = Node(None, Tokens(), 0, 0, (0, 0))
        self.root.locks = 1
        self.evictable = 0
        self.leaves = set()  # unlocked nodes without children: what eviction may take

    def tick(self):
        self.ticks += 1
        return (self.ticks, 0)

    def page_floor(self, n):
        return n // self.page_size * self.page_size

    def child_key(self, tokens, at):
        return tokens.runs(at, at + self.page_size)

    def match(self, tokens, limit):
        """Longest cached prefix of ``tokens[:limit]`` in whole pages; splits a node that it ends in."""
        limit = self.page_floor(limit)
        if self.disabled or limit <= 0:
            return 0, self.root
        node, done = self.root, 0
        while done < limit:
            child = node.children.get(self.child_key(tokens, done))
            if child is None:
                break
            shared = self.shared(child, tokens, done, limit)
            done += shared
            if shared < len(child):
                node = self.split(child, shared)
                break
            node = child
        tick, depth, up = self.tick()[0], 0, node
        while up is not None:
            up.time = (tick, -depth)
            depth, up = depth + 1, up.parent
        return done, node

    def shared(self, child, tokens, at, limit):
        return self.page_floor(common_prefix(child.tokens, child.start, tokens, at, min(len(child), limit - at)))

    def insert(self, tokens, length):
        """Put ``tokens[:length]`` in (whole pages). Returns how much was there already, and the last node."""
        length = self.page_floor(length)
        self.root.time = self.tick()
        node, done = self.root, 0
        while done < length:
            child = node.children.get(self.child_key(tokens, done))
            if child is None:
                break
            child.time = self.tick()
            shared = self.shared(child, tokens, done, length)
            node = self.split(child, shared) if shared < len(child) else child
            done += shared
        if done < length:
            leaf = Node(node, tokens, done, length, self.tick())
            node.children[self.child_key(tokens, done)] = leaf
            self.evictable += len(leaf)
            self.note_leaf(leaf)
            self.note_leaf(node)
            node = leaf
        return done, node

    def split(self, child, length):
        """Cut ``child`` after ``length`` tokens; returns the new upper part, which holds as many locks."""
        upper = Node(child.parent, child.tokens, child.start, child.start + length, self.tick())
        upper.locks = child.locks
        child.parent.children[self.child_key(child.tokens, child.start)] = upper
        child.parent, child.start = upper, child.start + length
        upper.children[self.child_key(child.tokens, child.start)] = child
        child.time = self.tick()
        self.note_leaf(upper)
        self.note_leaf(child)
        return upper

    def note_leaf(self, node):
        if node is not self.root and node.locks == 0 and not node.children:
            self.leaves.add(node)
        else:
            self.leaves.discard(node)

    def lock(self, node):
        if self.disabled:
            return
        while node is not self.root:
            if node.locks == 0:
                self.evictable -= len(node)
            node.locks += 1
            self.leaves.discard(node)
            node = node.parent

    def unlock(self, node):
        if self.disabled or node is None:
            return
        while node is not self.root:
            assert node.locks > 0
            node.locks -= 1
            if node.locks == 0:
                self.evictable += len(node)
                self.note_leaf(node)
            node = node.parent

    def evict(self, wanted):
        """Drop least recently used leaves, whole ones, until ``wanted`` tokens are free; returns how many were."""
        heap = [(leaf.time, id(leaf), leaf) for leaf in self.leaves]
        heapq.heapify(heap)
        freed = 0
        while freed < wanted and heap:
            leaf = heapq.heappop(heap)[2]
            self.leaves.discard(leaf)
            del leaf.parent.children[self.child_key(leaf.tokens, leaf.start)]
            self.evictable -= len(leaf)
            freed += len(leaf)
            self.note_leaf(leaf.parent)
            if leaf.parent in self.leaves:
                heapq.heappush(heap, (leaf.parent.time, id(leaf.parent), leaf.parent))
        return freed
