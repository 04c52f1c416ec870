"""Who owns which block of the cache of keys and values, and which blocks hold a beginning that comes again.

All stages' pools have equally many blocks and a sequence has the same ones on each, so one book
serves them all. A block may be given to another sequence as soon as its owner lets it go, though a
pass that writes it is still on its way: every stage works through passes in one order, so what
comes later is written later.
"""

from collections import OrderedDict
from collections.abc import Sequence

_Content = tuple[int, tuple[int, ...]]  # the content before it, and its tokens
_NOTHING = 0  # the content before the first block


class Blocks:
    """`count` blocks of `size` positions each.

    A full block whose owners have gone is kept until its room is needed, the one longest unused
    first: a sequence that begins alike takes it as it is.
    """

    def __init__(self, *, count: int, size: int) -> None:
        self.count = count
        self.size = size
        self._unused: list[int] = list(range(count - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()  # full, without an owner, the longest unused first
        self._owners: dict[int, int] = {}
        self._by_content: dict[_Content, int] = {}
        self._content: dict[int, tuple[int, _Content]] = {}  # block -> number of its content, and what it is
        self._contents = _NOTHING

    @property
    def num_free(self) -> int:
        """Count the blocks that can be taken."""
        return len(self._unused) + len(self._kept)

    @property
    def num_owned(self) -> int:
        """Count the blocks that sequences own."""
        return len(self._owners)

    def needed(self, length: int) -> int:
        """Count the blocks of so many positions."""
        return -(-length // self.size)

    def take(self, count: int) -> list[int] | None:
        """Return so many blocks, now owned; None if fewer are free."""
        if count > self.num_free:
            return None
        return [self._take_one() for _ in range(count)]

    def take_beginning(self, tokens: Sequence[int]) -> list[int]:
        """Return the blocks that already hold the beginning of these tokens, now owned; at least a token is left out.

        It is what the caller computes: the logits after the last token are in no cache.
        """
        found, before = [], _NOTHING
        for begin in range(0, len(tokens) - self.size, self.size):
            block = self._by_content.get((before, tuple(tokens[begin : begin + self.size])))
            if block is None:
                break
            found.append(block)
            before = self._content[block][0]
            self._kept.pop(block, None)
            self._owners[block] = self._owners.get(block, 0) + 1
        return found

    def fill(self, blocks: Sequence[int], tokens: Sequence[int]) -> None:
        """Note that blocks hold these tokens, from the first on; those that are not full are left aside."""
        before = _NOTHING
        for place, block in enumerate(blocks[: len(tokens) // self.size]):
            if block in self._content:
                before = self._content[block][0]
                continue
            content = (before, tuple(tokens[place * self.size : (place + 1) * self.size]))
            if content in self._by_content:  # two computed the same at once; the first is found
                before = self._content[self._by_content[content]][0]
                continue
            self._contents += 1
            self._by_content[content] = block
            self._content[block] = (self._contents, content)
            before = self._contents

    def let_go(self, blocks: Sequence[int]) -> None:
        """Own these blocks no longer."""
        for block in reversed(blocks):  # an end is of less use than a beginning
            self._owners[block] -= 1
            if self._owners[block]:
                continue
            del self._owners[block]
            if block in self._content:
                self._kept[block] = None
            else:
                self._unused.append(block)

    def forget(self) -> None:
        """Note that no block holds anything any more; none may be owned."""
        assert not self._owners, "blocks are owned"
        self._unused.extend(self._kept)
        for table in (self._kept, self._by_content, self._content):
            table.clear()

    def _take_one(self) -> int:
        if self._unused:
            block = self._unused.pop()
        else:
            block, _ = self._kept.popitem(last=False)
            _, content = self._content.pop(block)
            del self._by_content[content]
        self._owners[block] = 1
        return block
