"""Which pass comes next: the decisions of serving, without a clock and without a model.

Sequences are spread over groups, one more than there are stages, so that every stage has a pass to
work on while the tokens of another group are on their way back. Where stages share processors,
fewer groups are filled first, so that passes are larger: what a pass costs whatever is in it is
paid less often. A group's next pass waits for its tokens; a chunk of a prompt that is not the last
one waits for nothing. Passes are given out in one order, in which every stage works through them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from pipelinejob.base.values import Value
from pipelinejob.serving.blocks import Blocks
from pipelinejob.serving.chunks import PassCost, chunk_length
from pipelinejob.serving.line import Line
from pipelinejob.serving.passes import Pass, Row, Sampled, Sampling
from pipelinejob.spec.serving import Serving

_MOST_LOSSES = 3  # of an answer without a token between them, after which it may be what ends the stages


class Limits(Value):
    """What may be in work at once. `groups` passes may be on their way, each of `group_size` sequences at most.

    With `batch_invariant` the passes of a sequence are the same whatever else is in work, and
    whatever was lost.
    """

    groups: int
    group_size: int
    chunk_tokens: int
    block: int
    num_blocks: int
    max_waiting: int
    batch_invariant: bool = False

    @classmethod
    def of(cls, serving: Serving, *, num_stages: int) -> "Limits":
        """Return what a job may have in work at once: one pass more than there are stages."""
        return cls(
            groups=num_stages + 1 if num_stages > 1 else 1,
            group_size=serving.group_size,
            chunk_tokens=serving.chunk_tokens,
            block=serving.block_tokens,
            num_blocks=serving.cache_tokens // serving.block_tokens,
            max_waiting=serving.max_waiting,
            batch_invariant=serving.batch_invariant,
        )

    @property
    def cache_tokens(self) -> int:
        """Count the positions of the cache."""
        return self.num_blocks * self.block


class Ending(StrEnum):
    """Why a sequence got no more tokens, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(slots=True, kw_only=True, eq=False)
class Answer:
    """One answer in the making."""

    number: int
    client: str
    prompt: tuple[int, ...]
    max_new: int
    sampling: Sampling
    ends: frozenset[int] = frozenset()
    generated: list[int] = field(default_factory=list)
    group: int | None = None
    blocks: list[int] = field(default_factory=list)
    computed: int = 0  # tokens whose keys are in the cache, or will be by a pass that is on its way
    awaits: int = 0  # passes on their way with rows of it
    cached: int = 0  # tokens of the prompt that were found in the cache
    losses: int = 0  # passes of it that were lost with a chain since its last token

    @property
    def length(self) -> int:
        """Count its tokens."""
        return len(self.prompt) + len(self.generated)

    def tokens(self, begin: int, end: int) -> tuple[int, ...]:
        """Return its tokens [begin, end)."""
        split = len(self.prompt)
        return (*self.prompt[begin:end], *self.generated[max(0, begin - split) : max(0, end - split)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a token brought a sequence; with `ending` it was the last."""

    sequence: int
    sampled: Sampled
    ending: Ending | None = None


class Scheduler:
    """The state of serving: who waits, who is in work, what is on its way.

    So many groups as `spread` are filled before the others are used; all at once if it is None.
    """

    def __init__(self, limits: Limits, cost: PassCost | None = None, *, spread: int | None = None) -> None:
        self.limits = limits
        self.cost = cost
        self.spread = spread or limits.groups
        self.blocks = Blocks(count=limits.num_blocks, size=limits.block)
        self._line: Line[Answer] = Line()
        self._known: dict[int, Answer] = {}
        self._groups: list[list[Answer]] = [[] for _ in range(limits.groups)]
        self._flying: dict[int, Pass] = {}
        self._turn = 0
        self._passes = 0
        self._last_was_chunk = False

    @property
    def num_waiting(self) -> int:
        """Count the sequences that wait."""
        return len(self._line)

    @property
    def num_active(self) -> int:
        """Count the sequences that are in groups."""
        return sum(map(len, self._groups))

    @property
    def num_flying(self) -> int:
        """Count the passes that are on their way."""
        return len(self._flying)

    @property
    def is_full(self) -> bool:
        """Whether no more may wait."""
        return len(self._line) >= self.limits.max_waiting

    def submit(self, sequence: Answer) -> None:
        """Let a sequence wait for its turn. The caller has seen that the cache can hold it, and its answer."""
        self._known[sequence.number] = sequence
        self._line.add(sequence)

    def cancel(self, number: int) -> None:
        """Forget a sequence, wherever it is; what comes back for it is dropped. One that has ended is nothing to do."""
        sequence = self._known.pop(number, None)
        if sequence is None:
            return
        if sequence.group is None:
            self._line.remove(sequence)
        else:
            self._leave(sequence)

    def next_pass(self) -> Pass | None:
        """Return the pass that goes out next; None if all that could go waits for what is on its way."""
        if len(self._flying) >= self.limits.groups:
            return None
        self._admit()
        makers = (self._tokens_of_a_group, self._chunk)
        for make in makers if self._last_was_chunk else reversed(makers):
            made = make()
            if made is not None:
                self._last_was_chunk = made.group is None
                self._flying[made.number] = made
                return made
        return None

    def sampled(self, number: int, sampled: Iterable[Sampled]) -> list[Progress]:
        """Take what came back of a pass; return what it brought the sequences that still want it."""
        rows = self._flying.pop(number).rows
        for row in rows:
            sequence = self._known.get(row.sequence)
            if sequence is not None:
                sequence.awaits -= 1
        return [self._grown(self._known[each.sequence], each) for each in sampled if each.sequence in self._known]

    def lose_all(self) -> tuple[int, ...]:
        """Note that the chain was lost, with its caches: all in work begin again, from the tokens they have.

        Return those that are forgotten instead: so often in a row in a pass that was lost that
        they may be the cause.
        """
        self._flying.clear()
        active = sorted((each for group in self._groups for each in group), key=_by_age, reverse=True)
        for sequence in active:
            sequence.losses += bool(sequence.awaits)
            self._leave(sequence)
            self._line.add_again(sequence)
        self.blocks.forget()
        hopeless = tuple(each.number for each in active if each.losses >= _MOST_LOSSES)
        for number in hopeless:
            self.cancel(number)
        return hopeless

    def _grown(self, sequence: Answer, sampled: Sampled) -> Progress:
        sequence.generated.append(sampled.token)
        sequence.losses = 0
        ending = None
        if sampled.token in sequence.ends:
            ending = Ending.STOP
        elif len(sequence.generated) >= sequence.max_new:
            ending = Ending.LENGTH
        if ending is not None:
            del self._known[sequence.number]
            self._leave(sequence)
        return Progress(sequence=sequence.number, sampled=sampled, ending=ending)

    def _leave(self, sequence: Answer) -> None:
        assert sequence.group is not None, "it is in a group"
        self._groups[sequence.group].remove(sequence)
        self.blocks.let_go(sequence.blocks)
        sequence.group, sequence.blocks, sequence.computed, sequence.awaits = None, [], 0, 0

    def _admit(self) -> None:
        """Put those whose turn it is into the emptiest groups, while their beginnings find room in the cache."""
        while (first := self._line.first()) is not None:
            number = self._group_to_fill()
            if number is None:
                return
            found = [] if self.limits.batch_invariant else self.blocks.take_beginning(first.tokens(0, first.length))
            missing = self.blocks.needed(first.length + 1) - len(found)
            if missing > self.blocks.num_free and self.num_active:
                self.blocks.let_go(found)
                return
            self._line.take()
            first.blocks = found
            first.computed = first.cached = len(found) * self.limits.block
            first.group = number
            self._groups[number].append(first)

    def _group_to_fill(self) -> int | None:
        """Return the emptiest of the groups that are filled first; once these are full, of the others; or None."""
        for numbers in (range(self.spread), range(self.spread, self.limits.groups)):
            emptiest = min(numbers, key=lambda number: len(self._groups[number]), default=None)
            if emptiest is not None and len(self._groups[emptiest]) < self.limits.group_size:
                return emptiest
        return None

    def _chunk(self) -> Pass | None:
        """Return the next chunk of the prompt that was begun first."""
        begun = [each for group in self._groups for each in group if self._is_to_chunk(each)]
        for sequence in sorted(begun, key=_by_age):
            if sequence.group is None:  # it has just made room for an older one, though not enough
                continue
            row = self._row(sequence, self._chunk_length(sequence))
            if row is not None:
                return self._pass((row,), group=None)
        return None

    def _chunk_length(self, sequence: Answer) -> int:
        """Return how many tokens go into a sequence's next chunk.

        Where passes must not depend on others, chunks of a prompt end at multiples of their
        length, and tokens that were generated before the cache was lost are computed one by one,
        as they were.
        """
        most = self.limits.chunk_tokens
        if not self.limits.batch_invariant:
            left = sequence.length - sequence.computed
            return chunk_length(self.cost, past=sequence.computed, left=left, most=most)
        of_prompt = len(sequence.prompt) - sequence.computed
        return min(of_prompt, most) if of_prompt > 0 else 1

    def _is_to_chunk(self, sequence: Answer) -> bool:
        """Whether tokens are known that no pass has computed, beyond the one that was sampled last."""
        return sequence.computed < sequence.length and not self._is_decoding(sequence)

    def _is_decoding(self, sequence: Answer) -> bool:
        return bool(sequence.generated) and sequence.computed == sequence.length - 1

    def _tokens_of_a_group(self) -> Pass | None:
        """Return a pass of one token for each sequence of the group whose turn it is."""
        busy = {each.group for each in self._flying.values()}
        for offset in range(len(self._groups)):
            number = (self._turn + offset) % len(self._groups)
            if number in busy:
                continue
            ready = [each for each in self._groups[number] if self._is_decoding(each) and each.awaits == 0]
            # The older ones first: who makes room for another is younger, so it has no row yet.
            ready.sort(key=_by_age)
            rows = [row for each in ready if each.group is not None and (row := self._row(each, 1)) is not None]
            if rows:
                self._turn = number + 1
                return self._pass(tuple(rows), group=number)
        return None

    def _pass(self, rows: tuple[Row, ...], *, group: int | None) -> Pass:
        for row in rows:
            sequence = self._known[row.sequence]
            sequence.computed = row.length
            sequence.awaits += 1
            if row.length // self.limits.block > row.start // self.limits.block:
                self.blocks.fill(sequence.blocks, sequence.tokens(0, row.length))
        self._passes += 1
        return Pass(number=self._passes, rows=rows, group=group)

    def _row(self, sequence: Answer, count: int) -> Row | None:
        """Return a sequence's next tokens with room in the cache; None if there is none, even if others make room."""
        end = sequence.computed + count
        while (missing := self.blocks.needed(end) - len(sequence.blocks)) > 0:
            taken = self.blocks.take(missing)
            if taken is not None:
                sequence.blocks += taken
            elif not self._make_room(sequence):
                return None
        sampling = sequence.sampling if end == sequence.length else None
        counts = sampling is not None and sampling.counts_tokens
        return Row(
            sequence=sequence.number,
            tokens=sequence.tokens(sequence.computed, end),
            start=sequence.computed,
            blocks=tuple(sequence.blocks[: self.blocks.needed(end)]),
            sampling=sampling,
            prompt=sequence.prompt if counts else (),
            generated=tuple(sequence.generated) if counts else (),
        )

    def _make_room(self, for_: Answer) -> bool:
        """Send the youngest one back into the line, if it is younger and nothing of it is on its way."""
        younger = [
            each
            for group in self._groups
            for each in group
            if each.number > for_.number and each.awaits == 0 and each.blocks
        ]
        if not younger:
            return False
        youngest = max(younger, key=_by_age)
        self._leave(youngest)
        self._line.add_again(youngest)
        return True


def _by_age(answer: Answer) -> int:
    return answer.number
