"""KV blocks of one engine: the pool with its free queue, and the prefix cache over full blocks. Plain objects."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field


@dataclass(eq=False)
class Block:
    """One KV block. ``users`` counts the requests that hold it; ``content`` names the prefix that ends with it."""

    users: int = 0
    content: int | None = None


@dataclass
class PrefixNames:
    """Gives every (parent prefix, tokens of one block) a number, so that equal prefixes have equal names."""

    numbers: dict[tuple[int, tuple[int, ...]], int] = field(default_factory=dict)

    def name(self, parent: int, tokens: tuple[int, ...]) -> int:
        return self.numbers.setdefault((parent, tokens), len(self.numbers))


class BlockPool:
    """The free queue is taken from at its head. Block 0 is the engine's own and never handed out."""

    def __init__(self, num_blocks: int, block_size: int, prefix_caching: bool) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.free: OrderedDict[Block, None] = OrderedDict((Block(), None) for _ in range(num_blocks - 1))
        self.cached: dict[int, dict[Block, None]] = {}  # prefix -> its blocks, oldest registration first

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def take(self, count: int) -> list[Block]:
        """The first ``count`` blocks of the queue; what they cached is lost."""
        taken = [self.free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            if block.content is not None:
                same = self.cached[block.content]
                del same[block]
                if not same:
                    del self.cached[block.content]
                block.content = None
            block.users = 1
        return taken

    def share(self, blocks: list[Block]) -> None:
        """One more user for blocks found in the cache; those nobody used leave the free queue."""
        for block in blocks:
            if block.users == 0:
                del self.free[block]
            block.users += 1

    def give_back(self, blocks: list[Block]) -> None:
        """A request lets go of its blocks (in sequence order): the last one is to be reused first.

        Blocks that cache something wait at the tail of the queue, blocks of no further use go to its head.
        """
        released = []
        for block in reversed(blocks):
            block.users -= 1
            if block.users == 0:
                released.append(block)
        for block in released:
            if block.content is not None:
                self.free[block] = None
        for block in reversed(released):
            if block.content is None:
                self.free[block] = None
                self.free.move_to_end(block, last=False)

    def register(self, block: Block, prefix: int) -> None:
        block.content = prefix
        self.cached.setdefault(prefix, {})[block] = None

    def longest_hit(self, prefixes: list[int]) -> list[Block]:
        """Blocks that hold the leading prefixes, as far as there are any; of several the oldest registration."""
        hits = []
        for prefix in prefixes:
            same = self.cached.get(prefix)
            if not same:
                break
            hits.append(next(iter(same)))
        return hits
