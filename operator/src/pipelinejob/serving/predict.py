"""What serving will give: the scheduler's own decisions, played on stages of known cost. A prediction, all of it.

Where stages share processors, those that compute at the same time each go slower: `processors`
over their number.
"""

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from statistics import mean

from pipelinejob.contract.plan import Served, ServedAt
from pipelinejob.serving.chunks import PassCost, all_costs
from pipelinejob.serving.passes import Pass, Sampled, Sampling
from pipelinejob.serving.scheduler import Answer, Limits, Scheduler
from pipelinejob.simulation.clock import shared_rate

LOADS = (1, 4, 16)  # requests at once, for which is foretold what they will take
_TOKENS, _FEWEST = 64, 4
_MOST_HOPS = 2048  # of tokens over stages: to play more of them would hold planning up


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request: when it comes, seconds from the beginning, and its tokens."""

    at_s: float = 0.0
    prompt: int
    new: int


def examples(
    limits: Limits, stages: Sequence[PassCost], *, link_s: float = 0.0, processors: float | None = None
) -> tuple[ServedAt, ...]:
    """Return what a chain of stages will give at some loads, of 64 tokens in and out.

    Of fewer where the cache holds less, or the chain is long. `processors` is as in `predict`.
    """
    spread = best_spread(limits, stages, link_s=link_s, processors=processors)
    return _at_loads(limits, tuple(stages), link_s, processors, spread)


def best_spread(
    limits: Limits, stages: Sequence[PassCost], *, link_s: float = 0.0, processors: float | None = None
) -> int:
    """Return how many groups are best filled first, by what is foretold for them.

    All, where each stage has a processor. Where there are fewer, as many groups as can be computed
    at once, or one more, or all.
    """
    if processors is None or processors >= len(stages):
        return limits.groups
    at_once = max(1, math.ceil(processors))
    candidates = sorted({min(each, limits.groups) for each in (at_once, at_once + 1, limits.groups)})

    def rate(spread: int) -> float:
        found = _at_loads(limits, tuple(stages), link_s, processors, spread)
        return math.prod(each.tokens_per_s for each in found)

    return max(candidates, key=rate)


@lru_cache(maxsize=256)  # a job is planned again and again while it waits
def _at_loads(
    limits: Limits, stages: tuple[PassCost, ...], link_s: float, processors: float | None, spread: int
) -> tuple[ServedAt, ...]:
    tokens = max(_FEWEST, min(_TOKENS, _MOST_HOPS // len(stages)))
    tokens = max(1, min(tokens, limits.cache_tokens // 2))

    def at(requests: int) -> ServedAt:
        asked = [Asked(prompt=tokens, new=tokens)] * requests
        found = predict(asked, limits, stages, link_s=link_s, processors=processors, spread=spread)
        return ServedAt(**dict(found), requests=requests, tokens=tokens)

    return tuple(map(at, LOADS))


def predict(
    asked: Sequence[Asked],
    limits: Limits,
    stages: Sequence[PassCost],
    *,
    link_s: float = 0.0,
    processors: float | None = None,
    spread: int | None = None,
) -> Served:
    """Play requests on a chain of stages that take so long, and so long from one to the next and back.

    At least one request, each with a prompt and one new token or more, which the cache can hold.
    The stages share so many `processors`, of which a pass keeps one busy; None: each has its own.
    A stage is busy from a pass's beginning to its end, while it waits for a processor, too, as
    stages count it themselves. `spread` is the scheduler's.
    """
    scheduler = Scheduler(limits, all_costs(stages), spread=spread)
    return _Play(asked, scheduler, stages, link_s, processors).served()


@dataclass(frozen=True, slots=True, kw_only=True)
class Worked:
    """A stretch of a stage's time: a pass of a group's tokens, or, without a group, a chunk of a request's prompt."""

    start_s: float
    end_s: float
    group: int | None
    request: int


def played(
    asked: Sequence[Asked],
    limits: Limits,
    stages: Sequence[PassCost],
    *,
    link_s: float = 0.0,
    processors: float | None = None,
) -> tuple[tuple[Worked, ...], ...]:
    """Return what each stage works on when, in order; all is as in `predict`, with the best spread."""
    spread = best_spread(limits, stages, link_s=link_s, processors=processors)
    play = _Play(asked, Scheduler(limits, all_costs(stages), spread=spread), stages, link_s, processors)
    play.served()
    return play.worked()


@dataclass(slots=True)
class _Stage:
    """A stage in the play: the passes that have come, the one that is worked on, and since when; what it has done."""

    cost: PassCost
    waiting: deque[Pass]
    worked: list[Worked] = field(default_factory=list)
    working_on: Pass | None = None
    since_s: float = 0.0
    busy_s: float = 0.0


class _Play:
    """Events on a clock, and passes that are computed on another one, `worked`, which runs slower where they share."""

    def __init__(
        self,
        asked: Sequence[Asked],
        scheduler: Scheduler,
        stages: Sequence[PassCost],
        link_s: float,
        processors: float | None,
    ) -> None:
        self._asked = asked
        self._scheduler = scheduler
        self._stages = [_Stage(cost, deque()) for cost in stages]
        self._link_s = link_s
        self._processors = processors
        self._told_s: list[list[float]] = [[] for _ in asked]
        self._order = count()
        # A request comes, by its number; or a pass comes to a stage, the one after the last being
        # the first again.
        self._events: list[tuple[float, int, int | tuple[Pass, int]]] = []
        self._computing: list[tuple[float, int]] = []  # (end on the clock `worked`, stage)
        self._now_s = self._worked_s = 0.0

    def served(self) -> Served:
        for number, each in enumerate(self._asked):
            self._put(each.at_s, number)
        while self._events or self._computing:
            self._advance()
            if not self._events or self._events[0][0] > self._now_s:
                self._launch()
        return self._summed()

    def worked(self) -> tuple[tuple[Worked, ...], ...]:
        return tuple(tuple(stage.worked) for stage in self._stages)

    def _advance(self) -> None:
        """Go to whatever happens next, and let it happen."""
        rate = shared_rate(len(self._computing), self._processors)
        left_s = (self._computing[0][0] - self._worked_s) / rate if self._computing else float("inf")
        if self._events and self._events[0][0] - self._now_s <= left_s:
            at_s, _, what = heapq.heappop(self._events)
            self._worked_s += (at_s - self._now_s) * rate
            self._now_s = at_s
            self._happens(what)
        else:
            self._now_s += left_s
            self._worked_s, number = heapq.heappop(self._computing)
            self._done(number)

    def _happens(self, what: int | tuple[Pass, int]) -> None:
        if isinstance(what, int):
            self._scheduler.submit(self._answer(what))
            return
        given, number = what
        if number == len(self._stages):
            self._back(given)
            return
        self._stages[number].waiting.append(given)
        self._begin(number)

    def _launch(self) -> None:
        """Let the first stage begin the pass that is to go out next, if it is idle, as the engine does."""
        first = self._stages[0]
        if first.working_on is None and (given := self._scheduler.next_pass()) is not None:
            first.waiting.append(given)
            self._begin(0)

    def _begin(self, number: int) -> None:
        stage = self._stages[number]
        if stage.working_on is None and stage.waiting:
            stage.working_on, stage.since_s = stage.waiting.popleft(), self._now_s
            heapq.heappush(self._computing, (self._worked_s + _seconds(stage.cost, stage.working_on), number))

    def _done(self, number: int) -> None:
        stage = self._stages[number]
        given, stage.working_on = stage.working_on, None
        assert given is not None, "it was worked on"
        stage.busy_s += self._now_s - stage.since_s
        request = given.rows[0].sequence
        stage.worked.append(Worked(start_s=stage.since_s, end_s=self._now_s, group=given.group, request=request))
        self._put(self._now_s + self._link_s, (given, number + 1))
        self._begin(number)

    def _back(self, given: Pass) -> None:
        sampled = [Sampled(sequence=row.sequence, token=0) for row in given.rows if row.sampling is not None]
        for progress in self._scheduler.sampled(given.number, sampled):
            self._told_s[progress.sequence].append(self._now_s)

    def _answer(self, number: int) -> Answer:
        asked = self._asked[number]
        alone = range(number << 32, (number << 32) + asked.prompt)  # no two begin alike
        return Answer(number=number, client="", prompt=tuple(alone), max_new=asked.new, sampling=Sampling())

    def _put(self, at_s: float, what: int | tuple[Pass, int]) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), what))

    def _summed(self) -> Served:
        end_s = max(max(told) for told in self._told_s)
        begin_s = min(each.at_s for each in self._asked)
        return Served(
            first_token_s=mean(told[0] - asked.at_s for told, asked in zip(self._told_s, self._asked, strict=True)),
            per_token_s=mean((told[-1] - told[0]) / max(1, len(told) - 1) for told in self._told_s),
            tokens_per_s=sum(map(len, self._told_s)) / (end_s - begin_s),
            utilization=tuple(stage.busy_s / (end_s - begin_s) for stage in self._stages),
        )


def _seconds(cost: PassCost, given: Pass) -> float:
    past = mean(row.start for row in given.rows)
    return cost.seconds(rows=len(given.rows), past=past, new=len(given.rows[0].tokens))
