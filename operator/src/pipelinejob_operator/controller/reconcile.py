"""One pass over one job: observe, decide, apply. Events, the resync timer and the program's start call it alike."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

from pipelinejob.errors import InvalidManifestError, NoPlacementError, SpecError
from pipelinejob.hardware import Hardware
from pipelinejob.plan import Placement, Plan
from pipelinejob.site import Draft
from pipelinejob_operator.admission.choosing import Chooser
from pipelinejob_operator.admission.ledger import Ledger
from pipelinejob_operator.admission.priority import Priorities
from pipelinejob_operator.admission.queueing import NO_PLAN, Order
from pipelinejob_operator.admission.room import Room
from pipelinejob_operator.cluster import Cluster, ConflictError, ForbiddenError, InvalidError, Key, Object
from pipelinejob_operator.controller import late, transitions
from pipelinejob_operator.controller.admission import Admission, admit, promise_from, without_plan
from pipelinejob_operator.controller.costs import Costs, ProfileSource
from pipelinejob_operator.controller.decide import Decision, complete, decide, refused
from pipelinejob_operator.controller.measurements import is_due, summaries
from pipelinejob_operator.controller.memo import PerGeneration, PerVersion
from pipelinejob_operator.controller.observe import Observed, ask_progress, observe, plan_attempt, read_admitted
from pipelinejob_operator.controller.planning import Grounds, Planner
from pipelinejob_operator.controller.transitions import Turn
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, read_job
from pipelinejob_operator.objects.topology_profiles import profiles_of
from pipelinejob_operator.validation.validate import validate

__all__ = ["Controller", "ControllerSettings", "ProfileSource"]

MAX_WRITES_AT_ONCE = 16


class Controller:
    """Brings one job at a time closer to what its spec says; concurrently for several jobs, never twice for one.

    All passes run on one event loop: nothing awaits between reading what is free and promising it.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        settings: ControllerSettings,
        clock: Callable[[], datetime],
        profile_source: ProfileSource | None = None,
        hardware: Hardware | None = None,
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._clock = clock
        self._ledger = Ledger()
        self._errors = PerGeneration(_errors)
        self._jobs = PerVersion(read_job)
        self._grounds = Grounds(cluster)
        self._costs = Costs(cluster, given=profile_source)
        self._planner = Planner(settings, costs=self._costs, hardware=hardware)

    async def reconcile(self, key: Key) -> float | None:
        """Bring the job closer to its spec.

        Gives the seconds after which it wants to be called again, None if only an event can change anything. Raises
        ClusterError when a write failed; the caller retries with back-off.
        """
        await self._look_at_costs(key)
        if not await self._is_chosen(key):
            return self._settings.waiting_retry_s
        raw = await self._planned(key)
        if raw is None:
            self._errors.forget(key)
            self._planner.forget(key)
            self._costs.forget(key)
            return None
        now = self._clock()
        observed = await self._observe(raw, now)
        decision = decide(observed, now, self._settings, planner=self._plan)
        if decision.asks_for_room:
            return await self._admit(observed, decision, now)
        await self._carry_out(observed, decision)
        return decision.requeue_after_s

    async def _look_at_costs(self, key: Key) -> None:
        """Look at the measured costs of a job that waits for a plan; one that has its place keeps its plan."""
        raw = self._cluster.job(key)
        if raw is None or self._errors(raw):
            return
        job = read_job(raw)
        if not job.is_finished and not job.is_deleting and (not job.is_placed or self._needs_plan(raw)):
            await self._costs.look(job)

    async def _is_chosen(self, key: Key) -> bool:
        """See to it that the status says what was chosen for all that the spec leaves open, if it is time for that.

        Before its first step a job may be given another shape each time that it waits; afterwards only once it was
        suspended.
        """
        raw = self._cluster.job(key)
        if raw is None or self._errors(raw) or not _is_to_be_chosen(job := read_job(raw)):
            return True
        turn = Turn(job=job, now=self._clock(), status=job.status)
        try:
            written = read_job({**raw, "status": {}})  # with all that it leaves open
            chosen = await asyncio.to_thread(self._planner.choose, written, self._grounds.now())
            turn = turn if chosen == job.status.chosen else transitions.choose(turn, chosen)
        except (SpecError, NoPlacementError) as error:
            turn = transitions.wait(turn.having(chosen=None), NO_PLAN, str(error), stalled=True)
        await self._write_status(job, turn)
        raw = self._cluster.job(key)
        return raw is None or read_job(raw).status.chosen is not None

    async def _planned(self, key: Key) -> Object | None:
        """Read a job whose plan, if it needs one, is at hand: finding one may take seconds, in which others go on."""
        raw = self._cluster.job(key)
        if raw is not None and self._needs_plan(raw):
            job, _ = read_admitted(self._cluster, raw, (), self._settings)
            await asyncio.to_thread(self._planner.prepare, job, self._grounds.now())
            raw = self._cluster.job(key)
        return raw

    def _needs_plan(self, raw: Object) -> bool:
        job, _ = read_admitted(self._cluster, raw, self._errors(raw), self._settings)
        if self._errors(raw) or job.spec is None or job.spec.suspend or job.is_finished or job.is_deleting:
            return False
        if job.has_begun and plan_attempt(self._cluster.furniture(job.key)) == job.status.attempt:
            return False
        return not self._planner.knows(job, self._grounds.now())

    async def _observe(self, raw: Object, now: datetime) -> Observed:
        observed = observe(self._cluster, raw, self._errors(raw), self._settings)
        status = observed.job.status
        is_running = status.released_time is not None and not observed.job.is_finished
        if is_running and is_due(status, now=now, interval_s=self._settings.progress_interval_s):
            answers = await ask_progress(self._cluster, observed.current)
            return replace(observed, progress=answers)
        return observed

    async def _admit(self, observed: Observed, decision: Decision, now: datetime) -> float | None:
        job = observed.job
        turn = Turn(job=job, now=now, status=decision.status, events=decision.events)
        if job.binds_late:  # takes nothing that others could be given meanwhile
            turn = await asyncio.to_thread(late.admit, turn, observed, self._draft)
        else:
            admission = self._ask_for_room(turn)
            if admission.lacks_prices:
                await asyncio.to_thread(self._planner.price, job, self._grounds.now())
                admission = self._ask_for_room(turn)
            return await self._take(turn, admission, observed)
        decision = complete(turn, observed, self._settings, planner=self._plan)
        await self._carry_out(observed, decision)
        return decision.requeue_after_s

    async def _take(self, asking: Turn, admission: Admission, observed: Observed) -> float | None:
        """Write down what became of a job that asked for room; what it got is promised to it from now on."""
        turn = admission.turn
        promise = promise_from(turn, self._settings)
        before = self._ledger.write(promise) if promise else None
        if admission.placement is not None:
            try:
                turn = await self._planned_for(turn, admission.placement)
            except SpecError as error:
                turn = without_plan(asking, error)
        if promise and not replace(turn.job, status=turn.status).is_placed:
            self._ledger.restore(promise.uid, before)
        decision = complete(turn, observed, self._settings, planner=self._plan)
        try:
            await self._carry_out(observed, decision)
        except ConflictError:
            if promise and not self._was_written(turn):
                self._ledger.restore(promise.uid, before)
            raise
        return decision.requeue_after_s

    async def _planned_for(self, turn: Turn, placement: Placement) -> Turn:
        """Plan again for the place that the job got: with its devices, and its links."""
        job, ground = replace(turn.job, status=turn.status), self._grounds.now()
        await asyncio.to_thread(self._planner.prepare, job, ground, placement)
        return turn.having(**summaries(self._planner.plan(job, ground), placement))

    def _was_written(self, turn: Turn) -> bool:
        raw = self._cluster.job(turn.job.key)
        return raw is not None and read_job(raw).status == turn.status

    def _ask_for_room(self, turn: Turn) -> Admission:
        assert turn.job.spec is not None, "only readable jobs ask for room"
        jobs = self._jobs.of_all(self._cluster.jobs())
        promises = self._ledger.promises(jobs, self._settings)
        room = Room.of(
            own=turn.job,
            nodes=self._cluster.nodes(),
            pods=self._cluster.all_pods(),
            jobs=jobs,
            promises=promises,
            order=Order(priorities=Priorities.read(self._cluster.priority_classes())),
            empty=self._grounds.now().room,
            now=turn.now,
            settings=self._settings,
        )
        profiles = profiles_of(self._cluster.topology_profiles())
        chooser = Chooser(room.nodes, self._settings, profiles)
        return admit(turn, self._draft, room, chooser, self._settings)

    async def _carry_out(self, observed: Observed, decision: Decision) -> None:
        """Write the status, if it differs, then what follows from it."""
        await self._write_status(observed.job, decision)
        for reference in decision.delete:
            await self._cluster.delete(reference)
        try:
            await self._apply(decision.apply)
        except (ForbiddenError, InvalidError) as error:
            raw = self._cluster.job(observed.job.key)
            if raw is not None:
                await self._take_back(raw, error)
            return
        for item, status in decision.patch:
            await self._cluster.patch_status(item, status)

    async def _take_back(self, raw: Object, error: ForbiddenError | InvalidError) -> None:
        """Give everything back after the cluster refused a part of the gang: a partial gang holds nothing."""
        observed = observe(self._cluster, raw, (), self._settings)
        decision = refused(observed, self._clock(), self._settings, error=error, planner=self._plan)
        await self._write_status(observed.job, decision)
        for reference in decision.delete:
            await self._cluster.delete(reference)

    async def _write_status(self, job: Job, decision: Decision | Turn) -> None:
        status = decision.status.dump()
        if status == (job.raw.get("status") or {}):
            return
        await self._cluster.write_status(job.raw, status)
        for event in decision.events:
            await self._cluster.emit(job.raw, event)

    async def _apply(self, items: Sequence[Object]) -> None:
        # What pods mount and are named by comes before them.
        for item in items:
            if item["kind"] != "Pod":
                await self._cluster.apply(item)
        pods = [item for item in items if item["kind"] == "Pod"]
        limit = asyncio.Semaphore(MAX_WRITES_AT_ONCE)

        async def apply(item: Object) -> None:
            async with limit:
                await self._cluster.apply(item)

        results = await asyncio.gather(*(apply(pod) for pod in pods), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _plan(self, job: Job) -> Plan:
        return self._planner.plan(job, self._grounds.now())

    def _draft(self, job: Job) -> Draft:
        return self._planner.draft(job, self._grounds.now())


def _is_to_be_chosen(job: Job) -> bool:
    if not job.leaves_open or job.spec is None or job.spec.suspend or job.is_finished or job.is_deleting:
        return False
    is_from_scratch = not job.has_begun and not job.status.last_checkpoint_step and job.queue is None
    return job.status.chosen is None or is_from_scratch


def _errors(raw: Object) -> tuple[SpecError, ...]:
    try:
        validate(raw, profiles=None)
    except InvalidManifestError as invalid:
        return invalid.errors
    return ()
