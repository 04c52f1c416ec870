"""What serving will give: the scheduler's own decisions, played on stages of known cost. A prediction, all of it."""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from statistics import mean

from pipelinejob.contract.plan import Served, ServedAt
from pipelinejob.serving.chunks import PassCost
from pipelinejob.serving.passes import Pass, Sampled, Sampling
from pipelinejob.serving.scheduler import Answer, Limits, Scheduler

LOADS = (1, 4, 16)  # requests at once, for which is foretold what they will take
_TOKENS, _FEWEST = 64, 4
_MOST_HOPS = 2048  # of tokens over stages: to play more of them would hold planning up


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request: when it comes, seconds from the beginning, and its tokens."""

    at_s: float = 0.0
    prompt: int
    new: int


def chunk_cost(stages: Iterable[PassCost]) -> PassCost:
    """Return what a pass costs in all stages together, by which chunks are made equal."""
    stages = tuple(stages)
    return PassCost(
        fixed_s=sum(each.fixed_s for each in stages),
        row_s=sum(each.row_s for each in stages),
        token_s=sum(each.token_s for each in stages),
        attention_s=sum(each.attention_s for each in stages),
    )


def examples(limits: Limits, stages: Sequence[PassCost], *, link_s: float = 0.0) -> tuple[ServedAt, ...]:
    """Return what a chain of stages will give at some loads, of 64 tokens in and out.

    Of fewer where the cache holds less, or the chain is long.
    """
    return _examples(limits, tuple(stages), link_s)


@lru_cache(maxsize=64)  # a job is planned again and again while it waits
def _examples(limits: Limits, stages: tuple[PassCost, ...], link_s: float) -> tuple[ServedAt, ...]:
    tokens = max(_FEWEST, min(_TOKENS, _MOST_HOPS // len(stages)))
    tokens = max(1, min(tokens, limits.cache_tokens // 2))

    def at(requests: int) -> ServedAt:
        found = predict([Asked(prompt=tokens, new=tokens)] * requests, limits, stages, link_s=link_s)
        return ServedAt(**dict(found), requests=requests, tokens=tokens)

    return tuple(map(at, LOADS))


def predict(asked: Sequence[Asked], limits: Limits, stages: Sequence[PassCost], *, link_s: float = 0.0) -> Served:
    """Play requests on a chain of stages that take so long, and so long from one to the next and back.

    At least one request, each with a prompt and one new token or more, which the cache can hold.
    """
    return _Play(asked, limits, stages, link_s).served()


class _Play:
    def __init__(self, asked: Sequence[Asked], limits: Limits, stages: Sequence[PassCost], link_s: float) -> None:
        self._asked = asked
        self._scheduler = Scheduler(limits, chunk_cost(stages))
        self._stages = stages
        self._link_s = link_s
        self._free_s = [0.0] * len(stages)
        self._busy_s = [0.0] * len(stages)
        self._told_s: list[list[float]] = [[] for _ in asked]
        self._order = count()
        self._events: list[tuple[float, int, int | Pass]] = []  # a request's number comes, or a pass comes back

    def served(self) -> Served:
        for number, each in enumerate(self._asked):
            self._put(each.at_s, number)
        while self._events:
            now_s, _, what = heapq.heappop(self._events)
            if isinstance(what, Pass):
                self._back(now_s, what)
            else:
                self._scheduler.submit(self._answer(what))
            if not self._events or self._events[0][0] > now_s:
                self._launch(now_s)
        return self._summed()

    def _launch(self, now_s: float) -> None:
        """Send out all that may go; the first stage takes one after another."""
        while (given := self._scheduler.next_pass()) is not None:
            ready_s = now_s
            for stage, cost in enumerate(self._stages):
                begin_s = max(ready_s, self._free_s[stage])
                taken_s = _seconds(cost, given)
                self._free_s[stage] = begin_s + taken_s
                self._busy_s[stage] += taken_s
                ready_s = begin_s + taken_s + self._link_s
            self._put(ready_s, given)

    def _back(self, now_s: float, given: Pass) -> None:
        sampled = [Sampled(sequence=row.sequence, token=0) for row in given.rows if row.sampling is not None]
        for progress in self._scheduler.sampled(given.number, sampled):
            self._told_s[progress.sequence].append(now_s)

    def _answer(self, number: int) -> Answer:
        asked = self._asked[number]
        alone = range(number << 32, (number << 32) + asked.prompt)  # no two begin alike
        return Answer(number=number, client="", prompt=tuple(alone), max_new=asked.new, sampling=Sampling())

    def _put(self, at_s: float, what: int | Pass) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), what))

    def _summed(self) -> Served:
        end_s = max(max(told) for told in self._told_s)
        begin_s = min(each.at_s for each in self._asked)
        return Served(
            first_token_s=mean(told[0] - asked.at_s for told, asked in zip(self._told_s, self._asked, strict=True)),
            per_token_s=mean((told[-1] - told[0]) / max(1, len(told) - 1) for told in self._told_s),
            tokens_per_s=sum(map(len, self._told_s)) / (end_s - begin_s),
            utilization=tuple(busy / (end_s - begin_s) for busy in self._busy_s),
        )


def _seconds(cost: PassCost, given: Pass) -> float:
    past = mean(row.start for row in given.rows)
    return cost.seconds(rows=len(given.rows), past=past, new=len(given.rows[0].tokens))
