"""The one line of all jobs, worked through in its own order: who is given room, and why the others wait.

A pass over a job tells the loop that the job asks for room; the loop decides in the order of the
line, as many jobs a cycle as fit, and wakes those for which it decided something new; their next
pass carries it out. The loop remembers nothing that a new one could not learn from the cluster
within a pass over each job.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Protocol

import structlog

from pipelinejob.base.errors import NoPlacementError, SpecError
from pipelinejob.siting.site import Draft
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.admission import deciding
from pipelinejob_operator.admission.backfill import Ahead
from pipelinejob_operator.admission.capacity import claims_of, has_room
from pipelinejob_operator.admission.choosing import Chooser
from pipelinejob_operator.admission.deciding import Asking, Memory
from pipelinejob_operator.admission.line.queueing import BLOCKS_NOBODY, NO_PLAN, is_in_line
from pipelinejob_operator.admission.line.telling import stands_far_back
from pipelinejob_operator.admission.line.verdict import Placed, Refused, Verdict, Waits
from pipelinejob_operator.admission.pods.admitted import AdmittedPods
from pipelinejob_operator.admission.room import Room
from pipelinejob_operator.cluster import Key
from pipelinejob_operator.controller.admission.untold import Untold
from pipelinejob_operator.controller.admission.views import Views
from pipelinejob_operator.controller.beside_loop import beside_the_loop
from pipelinejob_operator.controller.planning import Ground, Planner
from pipelinejob_operator.controller.turns.waiting.admission import is_told, may_wait_untold
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, parse_time

_log = structlog.get_logger(__name__)

_LARGE = 64  # ranks: from here on, choosing nodes for a gang holds up others for too long
_BREATH_S = 0.02  # of deciding, after which the event loop has its turn
_LEAST_PAUSE_S = 0.02  # between two cycles
_SHARE = 0.3  # of the time that cycles may take, while one follows another
_MOST_PAUSE_S = 0.2  # all the same: within a long cycle others have their turn anyway, and room may have come free
_AUDIT_S = 60.0  # after which the line is worked through whether or not anything is known to have changed
_PATIENCE_S = 0.5  # between two lots of jobs that are told why they wait
_URGENT = 32  # jobs at the head of the line, and as many new ones, that are asked first for what they need


class LoopMetrics(Protocol):
    """What the loop tells of itself."""

    def cycle(self, seconds: float) -> None:
        """Take how long a cycle took."""

    def line(self, waiting: int, *, head_since: datetime | None) -> None:
        """Take how many jobs wait, and since when the first of them does."""

    def attempted(self, result: str) -> None:
        """Count a decision that is another than before: `admitted`, or the reason why not."""


@dataclass(slots=True)
class _Asked:
    """A job that asks for room, and what became of it."""

    job: Job
    likeness: Hashable  # what the decision is for: another attempt, or spec, asks anew
    verdict: Verdict | None = None
    usable: frozenset[str] | None = None  # the nodes that it could use, if nothing was left of them
    usable_at: object = None  # what that was looked up for
    is_far_back: bool = False  # as it was decided last: its sentence stays as it is for as long as it stands so
    is_written: bool = False  # or may be: its place was sent to the API server


class AdmissionLoop:
    """Decides who is given room. One loop for all jobs; `cycle` may be called by anybody, one runs at a time."""

    def __init__(
        self,
        room: Room,
        *,
        planner: Planner,
        admitted: AdmittedPods,
        settings: ControllerSettings,
        clock: Callable[[], datetime],
        wake: Callable[[Key], None] | None = None,
        metrics: LoopMetrics | None = None,
    ) -> None:
        """Prepare; without `wake`, whoever asks calls `cycle` and looks at the verdict."""
        self._room = room
        self._planner = planner
        self._admitted = admitted
        self._settings = settings
        self._clock = clock
        self._wake = wake
        self._metrics = metrics
        self._asked: dict[str, _Asked] = {}
        self._untold = Untold(room)
        self._views = Views(room, admitted=admitted, clock=clock)
        self._memory = Memory()
        self._asks = 0
        self._num_new_hurried = 0  # in this cycle
        self._worked_at: object = None  # the room and the questions that the line was last worked through for
        self._is_due = asyncio.Event()
        self._working = asyncio.Lock()

    # ---- for passes over jobs

    def ask(self, job: Job) -> None:
        """Take note that nothing but room is missing for a job."""
        known, likeness = self._asked.get(job.uid), self._likeness(job)
        if known is not None and (known.likeness == likeness or self._may_be_written(known)):
            known.job, known.likeness = job, likeness
            return
        self.forget(job.uid)
        self._asked[job.uid] = _Asked(job, likeness)
        self._asks += 1
        self._is_due.set()

    def verdict(self, job: Job) -> Verdict | None:
        """What became of a job that asks; None if that is not decided yet."""
        known = self._asked.get(job.uid)
        return known.verdict if known is not None and known.likeness == self._likeness(job) else None

    def may_wait_untold(self, status: PipelineJobStatus, verdict: Waits) -> bool:
        """Say whether why a job waits may stay unsaid for now: it gave up its place a moment ago."""
        return may_wait_untold(status, verdict, now=self._clock(), patience_s=self._settings.waiting_retry_s)

    def writing(self, job: Job) -> None:
        """Take note that the place of a job is about to be written: from now on nobody knows that it was not."""
        known = self._asked.get(job.uid)
        if known is not None:
            known.is_written = True

    def forget(self, uid: str) -> None:
        """Let go of a job that does not ask; what was promised to it, and surely not written, is others' again."""
        known = self._asked.get(uid)
        if known is None or self._may_be_written(known):
            return
        del self._asked[uid]
        self._untold.discard(uid)
        if isinstance(known.verdict, Placed):
            self._room.take_back(uid)
            self._asks += 1
            self._is_due.set()

    def _may_be_written(self, asked: _Asked) -> bool:
        """Whether a job's status may show its place by now, though the cache does not yet."""
        return asked.is_written and self._room.is_unshown(asked.job.uid)

    def notice(self) -> None:
        """Look at the line again: something changed that may concern it."""
        self._is_due.set()

    def ground(self) -> Ground:
        """What the cluster consists of now, whatever runs on it."""
        return self._views.ground()

    async def why_no_room(self, job: Job, *, grows: bool) -> str | None:
        """Say what keeps a job that holds nodes from other degrees, beside all others; None if nothing does.

        `job` is the job with these degrees. One that `grows` lets those go first that wait ahead
        of it.
        """
        self._room.refresh()
        order, chooser = self._room.order, self._look()
        first = next((each for each in self._room.waiting if is_in_line(each)), None)
        if grows and first is not None and order.rank(first) < order.rank(job):
            return f"{first.key}, which {order.why_ahead(first, job)}, waits for room itself"
        free = self._room.free_without(job.uid, (node["metadata"]["name"] for node in self._room.nodes))
        try:
            await asyncio.to_thread(chooser.choose, job, free)
        except NoPlacementError as error:
            return str(error)
        return None

    # ---- the loop

    async def run(self, *, may: Callable[[], Awaitable[object]]) -> None:
        """Work through the line whenever something changed, for ever; each time only once `may` returns."""
        while True:
            await may()
            try:
                async with asyncio.timeout(self._patience_s()):
                    await self._is_due.wait()
            except TimeoutError:
                pass
            started = time.monotonic()
            await self.cycle()
            took_s = time.monotonic() - started
            await asyncio.sleep(min(_MOST_PAUSE_S, max(_LEAST_PAUSE_S, took_s * (1 / _SHARE - 1))))

    def _patience_s(self) -> float:
        """How long the line may be left alone if nothing changes."""
        return _PATIENCE_S if self._untold else self._settings.waiting_retry_s

    async def cycle(self) -> None:
        """Work through the line once."""
        async with self._working:
            self._is_due.clear()
            started = time.monotonic()
            self._room.refresh()
            moment = int(started / (self._settings.waiting_retry_s if self._room.changes_by_time else _AUDIT_S))
            now = (self._room.version, self._asks, moment)
            self._prune()
            if self._wake is None or self._worked_at != now:
                await self._work_through()
                self._worked_at = now
            self._tell()
            if self._metrics:
                self._metrics.cycle(time.monotonic() - started)
                self._metrics.line(self._room.waiting_count, head_since=self._head_since())

    async def _work_through(self) -> None:
        self._memory.too_little, self._num_new_hurried = set(), 0
        with self._room.as_it_stands() as line:
            await self._go_along(line)

    async def _go_along(self, line: Sequence[str]) -> None:
        ahead, breath = Ahead(), time.monotonic()
        for number, uid in enumerate(line):
            asked = self._asked.get(uid)
            if asked is not None and self._stands_far_back(asked, ahead):
                ahead.count_one_more()
                continue
            if time.monotonic() - breath > _BREATH_S:
                await asyncio.sleep(0)
                breath = time.monotonic()
            job = self._room.job(uid)
            if job is None or not self._room.is_waiting(uid):
                continue
            if asked is None:
                self._hurry(number, job)
            else:
                await self._decide(asked, ahead)
            is_last = number + 1 == len(line)  # nobody has to mind it
            if not is_last and self._room.is_waiting(uid) and self._keeps_room(job, asked):
                self._keep_for(asked, asked.job if asked else job, ahead)

    def _keep_for(self, asked: _Asked | None, job: Job, ahead: Ahead) -> None:
        chooser = self._look()
        is_new = asked is None and job.status.state is None  # it asks with its first pass, in a moment
        if is_new and len(job.ranks) >= _LARGE:  # to reckon its room now would take long
            ahead.keep_all_for(job, self._room, chooser)
            return
        ahead.keep_for(job, self._room, chooser)
        if asked is not None and not ahead.is_reckoned and not chooser.goes_by_rules(job):
            asked.usable, asked.usable_at = chooser.usable(job, self._room.empty), self._views.usable_at

    def _hurry(self, number: int, job: Job) -> None:
        """Have the first in line, and who was never told anything, say what they need before anybody else does."""
        is_due = number < _URGENT or (job.status.state is None and self._num_new_hurried < _URGENT)
        if self._wake and is_due and is_in_line(job):
            self._num_new_hurried += number >= _URGENT
            self._wake(job.key)

    def _stands_far_back(self, asked: _Asked, ahead: Ahead) -> bool:
        """Whether nothing is left for a job that waits, and it was told so: most of a long line stands so."""
        if not asked.is_far_back or asked.usable is None or asked.usable_at is not self._views.usable_at:
            return False
        return stands_far_back(ahead.number) and ahead.takes_all_of(asked.usable)

    @staticmethod
    def _keeps_room(job: Job, asked: _Asked | None) -> bool:
        """Whether those behind have to mind a job."""
        if asked is not None and isinstance(asked.verdict, Waits):
            return asked.verdict.reason not in BLOCKS_NOBODY
        return asked is None and is_in_line(job)

    async def _decide(self, asked: _Asked, ahead: Ahead) -> None:
        job, before = asked.job, asked.verdict
        try:
            verdict = deciding.hindrance(job, self._room, self._look()) or await self._try(job, ahead)
        except SpecError as error:
            verdict = Refused(message=str(error))
        except NoPlacementError as error:
            verdict = Waits(reason=NO_PLAN, message=str(error), is_stalled=True)
        except Exception as error:  # noqa: BLE001  # one job that trips the loop must not keep it from all others
            _log.exception("no decision", job=str(job.key))
            verdict = Waits(reason=NO_PLAN, message=f"the operator failed to decide about it: {error!r}")
        asked.is_far_back = isinstance(verdict, Waits) and stands_far_back(ahead.number)
        if verdict == before:
            return
        asked.verdict = verdict
        if self._metrics:
            self._metrics.attempted(_result(verdict))
        if isinstance(verdict, Waits):
            self._untold.add(job.uid)
        else:
            self._untold.discard(job.uid)
            self._call(job.key)

    async def _try(self, job: Job, ahead: Ahead) -> Verdict:
        if not deciding.may_fit(self._asking(job, ahead)):
            await self._draft(job)  # what nothing can be planned for is told so, however long the line
            return deciding.explain(self._asking(job, ahead))
        draft = await self._draft(job)
        if not self._planner.is_priced(job, self.ground()):
            if not await self._fits(job, ahead):
                return deciding.explain(self._asking(job, ahead))
            await beside_the_loop(self._planner.price, job, self.ground())
        placed = await self._choose(job, ahead, draft)
        return placed or deciding.explain(self._asking(job, ahead))

    async def _fits(self, job: Job, ahead: Ahead) -> bool:
        asking = self._asking(job, ahead)
        if len(job.ranks) < _LARGE:
            return deciding.fits(asking, free=asking.free)
        return await asyncio.to_thread(deciding.fits, asking, free=dict(asking.free))

    async def _choose(self, job: Job, ahead: Ahead, draft: Draft) -> Placed | None:
        """Choose nodes and promise them; between the last look at what is free and the promise, nobody has a turn."""
        self._room.refresh()
        asking, prices = self._asking(job, ahead), self._planner.price(job, self.ground())
        find = partial(deciding.choose, asking, prices=prices, rate=draft.rate, move_s=self._settings.move_s)
        if len(job.ranks) < _LARGE:
            placement = find(free=asking.free)
        else:
            placement = await asyncio.to_thread(find, free=dict(asking.free))
        if placement is None or not self._room.is_waiting(job.uid):
            return None
        claims = claims_of(job, placement, self._admitted)
        if len(job.ranks) >= _LARGE:
            self._room.refresh()
            if not has_room(ahead.free(self._room), claims.values()):
                self._is_due.set()  # somebody else was there first
                return None
        self._room.promise(job, claims)
        return Placed(placement=placement, passed=ahead.sentence)

    def _asking(self, job: Job, ahead: Ahead) -> Asking:
        """All that a decision sees at this moment."""
        return Asking(job=job, room=self._room, chooser=self._look(), ahead=ahead, memory=self._memory)

    async def _draft(self, job: Job) -> Draft:
        ground = self.ground()
        if not self._planner.prepare_at_once(job, ground):
            await beside_the_loop(self._planner.prepare, job, ground)
        return self._planner.draft(job, ground)

    def _look(self) -> Chooser:
        """A chooser for the nodes as they are; what was reckoned for others than these is forgotten."""
        chooser = self._views.chooser()
        self._memory.at(self._room)
        return chooser

    # ---- who is told what

    def _prune(self) -> None:
        """Let go of those who ask no longer, by what changed of the jobs."""
        for uid in self._room.take_changed():
            job, asked = self._room.job(uid), self._asked.get(uid)
            if asked is None:
                continue
            if job is None or job.is_placed or job.is_finished or asked.likeness != self._likeness(asked.job, job):
                self.forget(uid)

    def _tell(self) -> None:
        """Wake those whose status says something else than what is so."""
        if self._wake is None:
            self._untold.clear()
            return
        for key in self._untold.take(self._is_untold):
            self._wake(key)

    def _is_untold(self, job: Job) -> bool:
        """Whether a job is to be told now why it waits."""
        asked = self._asked.get(job.uid)
        if asked is None or not isinstance(asked.verdict, Waits) or is_told(job, asked.verdict):
            return False
        return not self.may_wait_untold(job.status, asked.verdict)

    def _call(self, key: Key) -> None:
        if self._wake:
            self._wake(key)

    def _head_since(self) -> datetime | None:
        first = next((job for job in self._room.waiting if is_in_line(job)), None)
        return parse_time(first.status.resumed_time or first.created) if first and first.created else None

    def _likeness(self, job: Job, stored: Job | None = None) -> Hashable:
        """What a decision is for; with `stored`, as the cluster has the job now."""
        now = stored or job
        own = (now.uid, now.generation, now.status.attempt, now.status.chosen)
        return (*own, job.flavors, self._admitted.revision(job), self._planner.version(job))


def _result(verdict: Verdict) -> str:
    match verdict:
        case Placed():
            return "admitted"
        case Refused():
            return "InvalidSpec"
        case Waits():
            return verdict.reason
