"""How long the chunks of a prompt are: of equal cost, not of equal length, for a later token attends to more."""

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise

from pipelinejob.base.values import Value


class PassCost(Value):
    """Seconds of a stage for `new` tokens after `past` ones of each of `rows` sequences.

    t = fixed + rows * (row + held * past + token * new + attention * (2 * past * new + new ** 2)) + few(rows * new)

    `few` is what a pass of few tokens takes beside the line from one sequence to many: multiplying
    weights by two to eight vectors costs more than in proportion on most processors. It lies on
    the straight lines between the points of `few_s`, (tokens of a pass, seconds), and is 0 from
    the last of them on.
    """

    fixed_s: float
    row_s: float = 0.0
    held_s: float = 0.0  # of a token before, whose keys and values are gathered from the cache, once a pass
    token_s: float
    attention_s: float = 0.0  # of a token that attends to one before it, counted twice
    few_s: tuple[tuple[int, float], ...] = ()

    def seconds(self, *, rows: int, past: float, new: int) -> float:
        """Return the seconds of a pass."""
        attended = 2 * past * new + new**2
        each_s = self.row_s + self.held_s * past + self.token_s * new + self.attention_s * attended
        return self.fixed_s + rows * each_s + self.of_few_s(rows * new)

    def of_few_s(self, tokens: int) -> float:
        """Return what a pass of so many tokens takes beside the line."""
        for (before, before_s), (after, after_s) in pairwise(((1, 0.0), *self.few_s)):
            if tokens <= after:
                return before_s + (after_s - before_s) * (tokens - before) / (after - before)
        return 0.0


def all_costs(stages: Iterable[PassCost]) -> PassCost:
    """Return what a pass costs several stages together."""
    stages = tuple(stages)
    points = sorted({tokens for each in stages for tokens, _ in each.few_s})
    return PassCost(
        fixed_s=sum(each.fixed_s for each in stages),
        row_s=sum(each.row_s for each in stages),
        held_s=sum(each.held_s for each in stages),
        token_s=sum(each.token_s for each in stages),
        attention_s=sum(each.attention_s for each in stages),
        few_s=tuple((tokens, sum(each.of_few_s(tokens) for each in stages)) for tokens in points),
    )


class Late(Value):
    """The seconds of a pass of one token that `past` ones came before."""

    past: int
    seconds: float


def explained(
    one: float,
    many: float,
    first: float,
    second: float,
    *,
    rows: int,
    chunk: int,
    late: Late | None = None,
    few: Mapping[int, float] | None = None,
) -> PassCost:
    """Return the cost that explains the seconds of passes: a token, one of many rows, a first chunk and a second.

    With `late` what is gathered from the cache is told from what is computed of it; `few` are the
    seconds of passes of numbers of rows between one and many. No term is below 0, but for those of
    `few`.
    """
    of_chunk_s = (second - first) / chunk  # held + 2 * attention * chunk
    of_one_s = 0.0 if late is None else max(0.0, (late.seconds - one) / late.past)  # held + 2 * attention
    attention_s = max(0.0, (of_chunk_s - of_one_s) / (2 * (chunk - (late is not None))))
    held_s = max(0.0, of_one_s - 2 * attention_s)
    each_s = max(0.0, (many - one) / (rows - 1))
    token_s = max(0.0, (first - one - attention_s * (chunk**2 - 1)) / (chunk - 1))
    row_s = max(0.0, each_s - token_s - attention_s)
    line = PassCost(
        fixed_s=max(0.0, one - row_s - token_s - attention_s),
        row_s=row_s,
        held_s=held_s,
        token_s=token_s,
        attention_s=attention_s,
    )
    if not few:
        return line
    beside = {number: taken - line.seconds(rows=number, past=0, new=1) for number, taken in sorted(few.items())}
    return line.model_copy(update={"few_s": (*beside.items(), (rows, 0.0))})


def chunk_length(cost: PassCost | None, *, past: int, left: int, most: int) -> int:
    """Return how many of `left` tokens the next chunk takes, after `past` ones.

    The first chunk of a prompt may have `most` tokens; each later one as many as take as long as
    that one did, but for what is gathered from the cache, which chunks pay however short they are.
    """
    length = min(left, most)
    if cost is None or past == 0 or cost.attention_s <= 0:
        return length
    budget_s = cost.seconds(rows=1, past=0, new=most) - cost.fixed_s
    # attention * x^2 + (token + 2 * attention * past) * x - budget = 0
    linear = cost.token_s + 2 * cost.attention_s * past
    root = (-linear + math.sqrt(linear**2 + 4 * cost.attention_s * (budget_s - cost.row_s))) / (2 * cost.attention_s)
    return max(1, min(length, int(root + 1e-9)))
