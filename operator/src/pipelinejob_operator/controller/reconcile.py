"""One pass over one job: observe, decide, apply. Events, the resync timer and the program's start call it alike."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial

from pipelinejob.base.errors import NoPlacementError, SpecError
from pipelinejob.contract.plan import Placement, Plan
from pipelinejob.contract.progress import SPARE_REPLICA, Phase
from pipelinejob.fabric.hardware import Hardware
from pipelinejob.siting.site import Draft
from pipelinejob.spec.reported.conditions import State
from pipelinejob_operator.admission.capacity import identity
from pipelinejob_operator.admission.line.queueing import NO_PLAN
from pipelinejob_operator.admission.line.verdict import Placed, Refused, Waits
from pipelinejob_operator.admission.pods.admitted import AdmittedPods
from pipelinejob_operator.admission.pods.alike import AlikePods
from pipelinejob_operator.admission.pods.fitting import misfits
from pipelinejob_operator.admission.pods.substitute import Place
from pipelinejob_operator.admission.room import Room
from pipelinejob_operator.cluster import Cluster, Event, ForbiddenError, Key, UnavailableError
from pipelinejob_operator.controller.admission.admission_loop import AdmissionLoop, LoopMetrics
from pipelinejob_operator.controller.admission.admitting import ask_admission, learn_from, not_let_in
from pipelinejob_operator.controller.applying import Applier
from pipelinejob_operator.controller.beside_loop import beside_the_loop
from pipelinejob_operator.controller.chains.services import Services
from pipelinejob_operator.controller.costs import Costs, ProfileSource
from pipelinejob_operator.controller.decide import Decision, Refusal, complete, decide, refused
from pipelinejob_operator.controller.from_memory import FromMemory
from pipelinejob_operator.controller.observing.memo import Lately, PerGeneration, PerVersion, StagePods
from pipelinejob_operator.controller.observing.namesakes import furniture_in_the_way
from pipelinejob_operator.controller.observing.observe import (
    Observed,
    ask_events,
    ask_progress,
    observe,
    plan_version,
    read_admitted,
    wanted_plan,
)
from pipelinejob_operator.controller.planning import Planner
from pipelinejob_operator.controller.relocating import find_places, find_spare_places
from pipelinejob_operator.controller.shaping import Shaper
from pipelinejob_operator.controller.status_writing import StatusWriter
from pipelinejob_operator.controller.turns import remedies, resizing, transitions
from pipelinejob_operator.controller.turns.failing import replacing
from pipelinejob_operator.controller.turns.failing.giving_back import since_release_s
from pipelinejob_operator.controller.turns.measurements import is_due, summaries
from pipelinejob_operator.controller.turns.stragglers import find_slow, relative_speeds
from pipelinejob_operator.controller.turns.transitions import Turn
from pipelinejob_operator.controller.turns.waiting import late, provisioning
from pipelinejob_operator.controller.turns.waiting.admission import (
    follow_placed,
    follow_refused,
    follow_waits,
    without_plan,
)
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, Rank, read_job
from pipelinejob_operator.validation.stored import StoredErrors

__all__ = ["Controller", "ControllerSettings", "ProfileSource"]

_LARGE = 64  # ranks: to plan for more holds up others for too long
_QUESTIONS_PER_S = 25.0  # jobs that are asked how far they are: more would cost too much where thousands train


class Controller:
    """Brings one job at a time closer to what its spec says; concurrently for several jobs, never twice for one.

    All passes run on one event loop. Room is given by `admissions`, the loop that works through
    the line of all jobs.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        settings: ControllerSettings,
        clock: Callable[[], datetime],
        profile_source: ProfileSource | None = None,
        hardware: Hardware | None = None,
        wake: Callable[[Key], None] | None = None,
        metrics: LoopMetrics | None = None,
    ) -> None:
        """Prepare. With `wake`, somebody runs `admissions.run`, and `wake` has a job passed over soon.

        Without it, a pass that asks for room works through the line itself.
        """
        self._cluster = cluster
        self._settings = settings
        self._clock = clock
        self._wake = wake
        self._errors = PerGeneration(StoredErrors())
        self._jobs = PerVersion(read_job)
        self._pods = StagePods()
        self._said = Lately[dict[str, tuple[Event, ...]]](keep_s=settings.hearing_interval_s)
        self._resizes = Lately[tuple[str, int]](keep_s=settings.waiting_retry_s)  # what was last looked into
        self._costs = Costs(cluster, given=profile_source)
        self._statuses = StatusWriter(cluster)
        self._applier = Applier(cluster, self._statuses)
        self._admitted = AdmittedPods(settings)
        self._alike = AlikePods(self._admitted)
        self._planner = Planner(self._admitted, costs=self._costs, hardware=hardware)
        self._room = Room(cluster, admitted=self._admitted, settings=settings, read=self._jobs, clock=clock)
        self.admissions = AdmissionLoop(
            self._room,
            planner=self._planner,
            admitted=self._admitted,
            settings=settings,
            clock=clock,
            wake=wake,
            metrics=metrics,
        )

        from_memory = FromMemory(self._planner, self.admissions, places=self._places_beside)
        self._shaper = Shaper(self._planner, self.admissions, from_memory, shares_processors=settings.shares_processors)
        self._services = Services(cluster, settings=settings, statuses=self._statuses, errors=self._errors, clock=clock)

    async def reconcile(self, key: Key) -> float | None:
        """Bring the job closer to its spec.

        Returns the seconds after which it wants to be called again, None if only an event can
        change anything. Raises ClusterError when a write failed; the caller retries with back-off.
        """
        known = self._job(key)
        if known is not None and known.is_service:
            return await self._services.reconcile(known)
        await self._look_at_costs(key)
        if not await self._is_chosen(key):
            return self._settings.waiting_retry_s
        await self._resize(key)
        job = await self._planned(key)
        if job is None:
            self._forget(key)
            return None
        now = self._clock()
        observed = await self._observe(job, now)
        decision = decide(observed, now, self._paced(), planner=self._plan)
        if decision.asks_for_room:
            return await self._admit(observed, decision, now)
        self.admissions.forget(job.uid)
        await self._carry_out(observed, decision)
        return decision.requeue_after_s

    def _forget(self, key: Key) -> None:
        for each in (
            self._errors,
            self._jobs,
            self._planner,
            self._costs,
            self._admitted,
            self._statuses,
            self._said,
            self._resizes,
            self._pods,
        ):
            each.forget(key)
        self.admissions.notice()

    def _job(self, key: Key) -> Job | None:
        raw = self._cluster.job(key)
        return None if raw is None else self._jobs(raw)

    async def _look_at_costs(self, key: Key) -> None:
        """Look at the measured costs of a job that waits for a plan; one that has its place keeps its plan."""
        job = self._job(key)
        if job is None or self._errors(job.raw):
            return
        if not job.is_finished and not job.is_deleting and (not job.is_placed or self._needs_plan(job)):
            await self._costs.look(job)

    async def _is_chosen(self, key: Key) -> bool:
        """Resolve open fields and persist status.chosen, if it is time for that.

        Before its first step a job may be given another shape each time that it waits; afterwards
        only once it was suspended.
        """
        job = self._job(key)
        if job is None or self._errors(job.raw) or not _is_to_be_chosen(job):
            return True
        turn = Turn(job=job, now=self._clock(), status=job.status)
        try:
            chosen = await self._shaper.choose(job)
            turn = turn if chosen == job.status.chosen else transitions.choose(turn, chosen)
        except (SpecError, NoPlacementError) as error:
            turn = transitions.wait(turn.having(chosen=None), NO_PLAN, str(error), stalled=True)
        await self._applier.write_status(job, turn)
        job = self._job(key)
        return job is None or job.status.chosen is not None

    async def _resize(self, key: Key) -> None:
        """Begin to have the shape that the spec asks for now, once it can be planned and has room."""
        job, now = self._job(key), self._clock()
        if job is None or self._errors(job.raw):
            return
        turn = Turn(job=job, now=now, status=job.status)
        if resizing.is_withdrawn(job):
            await self._applier.write_status(job, resizing.settle(turn))
        wanted = (job.uid, job.generation)
        if not resizing.is_asked(job) or self._resizes.get(key, now) == wanted:
            return
        self._resizes.keep(key, now, wanted)
        await self._applier.write_status(job, await self._shaper.resize(turn))

    async def _planned(self, key: Key) -> Job | None:
        """Read a job whose plan, if it needs one, is at hand: finding one may take seconds, in which others go on."""
        job = self._job(key)
        if job is None or not self._needs_plan(job):
            return job
        admitted, _ = read_admitted(self._cluster, job, (), self._settings)
        await self._prepare(admitted)
        return self._job(key)

    def _needs_plan(self, stored: Job) -> bool:
        job, _ = read_admitted(self._cluster, stored, self._errors(stored.raw), self._settings)
        if self._errors(stored.raw) or job.spec is None or job.spec.suspend or job.is_finished or job.is_deleting:
            return False
        if job.has_begun and plan_version(self._cluster.furniture(job.key)) == wanted_plan(job.status):
            if job.status.recovery and (job.status.recovery.resizing or job.status.recovery.resizes):
                return not self._planner.knows(job, self.admissions.ground())  # it is told at each meeting, or soon
            self._planner.forget(job.key)  # it stands in the job's config map
            return False
        return not self._planner.knows(job, self.admissions.ground())

    async def _observe(self, job: Job, now: datetime) -> Observed:
        asker = None
        if job.is_placed:
            self._room.refresh()
            asker = self._room.asked.get(job.uid)
        observed = observe(self._cluster, job, self._errors(job.raw), self._settings, read=self._pods, asker=asker)
        if observed.is_gathered and not observed.job.binds_late:
            observed = replace(observed, misfits=await self._misfits(observed))
        status = observed.job.status
        is_running = status.released_time is not None and not observed.job.is_finished
        if is_running and since_release_s(status, now) >= self._settings.hearing_interval_s:
            observed = replace(observed, said=await self._hear(observed, now))
        is_progress_due = is_due(status, now=now, interval_s=self._paced().progress_interval_s)
        spec = observed.job.spec
        if is_running and spec is not None and replacing.is_on(spec):
            return await self._divide(await self._with_places(observed, now, is_progress_due=is_progress_due), now)
        if is_running and is_progress_due:
            answers = await ask_progress(self._cluster, observed.current)
            return await self._divide(replace(observed, progress=answers), now)
        return observed

    async def _with_places(self, observed: Observed, now: datetime, *, is_progress_due: bool) -> Observed:
        """Ask all stages, and all spares, how they are, and have at hand where others in their place would go."""
        answers = await ask_progress(self._cluster, observed.current, only_ready=False)
        spares = tuple(each for each in answers if each.phase is Phase.SPARE)
        stages = tuple(each for each in answers if each.replica != SPARE_REPLICA)
        seen = replace(observed, accounts=stages, progress=stages if is_progress_due else (), spares=spares)
        look = partial(find_places, observed=seen, room=self._room, admitted=self._admitted, now=now)
        spare = partial(find_spare_places, observed=seen, room=self._room, admitted=self._admitted, now=now)
        return replace(seen, places=look, spare_places=spare)

    def _places_beside(self, job: Job, ranks: Sequence[Rank], now: datetime) -> Mapping[Rank, Place]:
        """Find nodes for further ranks of a job that runs."""
        observed = observe(self._cluster, job, (), self._settings, read=self._pods)
        return find_places(ranks, frozenset(), observed=observed, room=self._room, admitted=self._admitted, now=now)

    async def _divide(self, observed: Observed, now: datetime) -> Observed:
        """Divide a job's layers anew, by what its stages measured, where it is to be seen whether that pays."""
        job = observed.job
        slow = find_slow(observed.progress, job.status)
        if slow is None or job.spec is None or not remedies.wants_division(job.status, slow, job.spec, now):
            return observed
        speeds = relative_speeds(observed.progress, job.status)
        try:
            divided = await beside_the_loop(self._planner.divided_anew, job, self.admissions.ground(), speeds)
        except (SpecError, NoPlacementError):  # then it goes on as it is, and says so
            return observed
        return replace(observed, divided=divided)

    async def _misfits(self, observed: Observed) -> tuple[str, ...]:
        """Look whether a gang fits, as it was admitted, where it is about to go; and learn what it asks for."""
        job = observed.job
        where = {Rank(stage.replica, stage.stage): stage.node or "" for stage in job.status.stages}
        nodes = [node for name in sorted({*where.values()}) if (node := self._cluster.node(name)) is not None]
        free = self._room.free_without(job.uid, (node["metadata"]["name"] for node in nodes))
        gang = {rank: (pod.raw, where[rank]) for rank, pod in observed.current.items()}
        others = self._room.neighbours(lambda pod: identity(pod)[0] != job.uid)
        if len(gang) < _LARGE:
            found = misfits(gang, nodes, free, others)
        else:
            found = await asyncio.to_thread(misfits, gang, nodes, free, others)
        if found:
            self._alike.forget(job.key.namespace)
            learn_from(self._admitted, job, observed.current)
            self._room.reconsider(job.uid)
        return tuple(found)

    async def _hear(self, observed: Observed, now: datetime) -> dict[str, tuple[Event, ...]]:
        key = observed.job.key
        said = self._said.get(key, now)
        if said is None:
            said = await ask_events(self._cluster, observed.current)
            self._said.keep(key, now, said)
        return said

    async def _admit(self, observed: Observed, decision: Decision, now: datetime) -> float | None:
        job = observed.job
        turn = Turn(job=job, now=now, status=decision.status, events=decision.events)
        if job.binds_late:  # takes nothing that others could be given meanwhile
            observed = await self._with_namesakes(observed)
            return await self._finish(await self._bind_late(turn, observed), observed)
        if (held := await self._ask_admission(turn)) is not None:
            return await self._finish(held, observed)
        self.admissions.ask(job)
        if self._wake is None:
            await self.admissions.cycle()
        match self.admissions.verdict(job):
            case Placed() as placed:
                return await self._take(turn, placed, observed)
            case Waits() as waits if not self.admissions.may_wait_untold(turn.status, waits):
                return await self._finish(provisioning.tell(turn, follow_waits(turn, waits), observed), observed)
            case Refused() as verdict:
                return await self._finish(follow_refused(turn, verdict), observed)
        await self._carry_out(observed, decision)  # it is woken once it was decided, or looks again
        return decision.requeue_after_s

    async def _finish(self, turn: Turn, observed: Observed) -> float | None:
        decision = complete(turn, observed, self._paced(), planner=self._plan)
        await self._carry_out(observed, decision)
        return decision.requeue_after_s

    def _paced(self) -> ControllerSettings:
        """The settings, but that many training jobs are each asked less often how far they are."""
        interval_s = max(self._settings.progress_interval_s, self._room.holding_count / _QUESTIONS_PER_S)
        return replace(self._settings, progress_interval_s=interval_s)

    async def _ask_admission(self, turn: Turn) -> Turn | None:
        """Learn what admission makes of the job's pods, once for each attempt; wait if it lets none in."""
        job, kinds = turn.job, self._admitted.kinds_to_ask(turn.job)
        # A class that does not exist yet is waited for, not backed off from as from a refusal.
        if not kinds or not self._room.order.priorities.knows(job):
            return None
        try:
            answers = await ask_admission(self._cluster, job, kinds, self._admitted, self._alike, turn.now)
            self._admitted.learn(job, answers)
        except (ForbiddenError, UnavailableError) as error:
            return not_let_in(turn, error, times=self._admitted.refuse(job), settings=self._settings)
        await self._prepare(job)
        return None

    async def _prepare(self, job: Job) -> None:
        """Have the job's plan at hand; what was planned for none of its shape is planned beside the event loop."""
        ground = self.admissions.ground()
        if not self._planner.prepare_at_once(job, ground):
            await beside_the_loop(self._planner.prepare, job, ground)

    async def _take(self, asking: Turn, verdict: Placed, observed: Observed) -> float | None:
        """Take the place that was promised, if all names that the job needs are free and there is a plan for it."""
        observed, job = await self._with_namesakes(observed), asking.job
        if observed.in_the_way:
            turn = transitions.step_aside(asking, asking.status.state or State.PENDING, observed.in_the_way)
        else:
            try:
                placed = follow_placed(asking, self._planner.draft(job, self.admissions.ground()).plan, verdict)
                turn = await self._planned_for(placed, verdict.placement)
            except SpecError as error:
                turn = without_plan(asking, error)
        if replace(job, status=turn.status).is_placed:
            self.admissions.writing(job)
        else:
            self.admissions.forget(job.uid)
        return await self._finish(turn, observed)

    async def _with_namesakes(self, observed: Observed) -> Observed:
        """Look, now that the job is about to begin, whether all names that it needs are free."""
        return replace(observed, in_the_way=await furniture_in_the_way(self._cluster, observed))

    async def _bind_late(self, turn: Turn, observed: Observed) -> Turn:
        if observed.in_the_way:
            return transitions.step_aside(turn, turn.status.state or State.PENDING, observed.in_the_way)
        return await beside_the_loop(late.admit, turn, observed, self._draft)

    async def _planned_for(self, turn: Turn, placement: Placement) -> Turn:
        """Plan again for the place that the job got: with its devices, and its links."""
        job, ground = replace(turn.job, status=turn.status), self.admissions.ground()
        if len(placement.assignments) < _LARGE:  # it was drafted, so that this takes moments
            self._planner.prepare(job, ground, placement)
        else:
            await beside_the_loop(self._planner.prepare, job, ground, placement)
        return turn.having(**summaries(self._planner.plan(job, ground), placement))

    async def _carry_out(self, observed: Observed, decision: Decision) -> None:
        refusal = await self._applier.carry_out(observed, decision)
        if refusal is not None:
            self._alike.forget(observed.job.key.namespace)
            await self._take_back(observed.job.key, refusal)

    async def _take_back(self, key: Key, refusal: Refusal) -> None:
        """Release everything after the cluster refused a part of the gang."""
        raw = self._cluster.job(key)
        if raw is not None:
            observed = observe(self._cluster, self._jobs(raw), (), self._settings, read=self._pods)
            decision = refused(observed, self._clock(), self._settings, error=refusal, planner=self._plan)
            await self._applier.take_back(observed.job, decision)

    def _plan(self, job: Job) -> Plan:
        return self._planner.plan(job, self.admissions.ground())

    def _draft(self, job: Job) -> Draft:
        return self._planner.draft(job, self.admissions.ground())


def _is_to_be_chosen(job: Job) -> bool:
    if not job.leaves_open or job.spec is None or job.spec.suspend or job.is_finished or job.is_deleting:
        return False
    if not job.has_begun and (resizing.is_another(job) or resizing.may_shrink(job)):
        return True
    is_from_scratch = not job.has_begun and not job.status.last_checkpoint_step and job.queue is None
    return job.status.chosen is None or is_from_scratch
