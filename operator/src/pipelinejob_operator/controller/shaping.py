"""Degrees, schedule and micro-batches of jobs that leave them open, or that are to have another number of replicas."""

from dataclasses import replace

from pipelinejob.base.errors import NoPlacementError, SpecError
from pipelinejob.spec.chosen import Chosen, resolved
from pipelinejob_operator.admission.line.queueing import NO_ROOM
from pipelinejob_operator.controller.admission.admission_loop import AdmissionLoop
from pipelinejob_operator.controller.beside_loop import beside_the_loop
from pipelinejob_operator.controller.from_memory import FromMemory
from pipelinejob_operator.controller.planning import Planner
from pipelinejob_operator.controller.turns import resizing, shapes
from pipelinejob_operator.controller.turns.measurements import without_nodes
from pipelinejob_operator.controller.turns.transitions import Turn
from pipelinejob_operator.objects.job import Job, read_job


class Shaper:
    """Chooses by what is planned, and by what there is room for. Searches may take seconds, in which others go on."""

    def __init__(
        self, planner: Planner, admissions: AdmissionLoop, from_memory: FromMemory, *, shares_processors: bool
    ) -> None:
        """`shares_processors`: degrees that are given need no device for each rank, so nothing is searched for them."""
        self._planner = planner
        self._admissions = admissions
        self._from_memory = from_memory
        self._shares_processors = shares_processors

    async def choose(self, job: Job) -> Chosen:
        """Choose for a job that holds nothing: what is quickest for all replicas, or for as many as have room now.

        Raises SpecError if nothing can be planned, NoPlacementError if nothing of it finds a
        place.
        """
        written, first, error = _as_written(job), None, None
        for shape in resizing.with_replicas(written):
            try:
                chosen = await self._plan(shape)
            except (SpecError, NoPlacementError) as raised:
                error = error or raised
                continue
            if not resizing.may_shrink(written) or await self._why_no_room(job, shape, chosen, grows=True) is None:
                return chosen
            first = first or chosen
        before = job.status.chosen
        if first is None and before is not None and before.data == job.wanted_replicas:
            return before  # it ran so
        if first is None:
            assert error is not None, "a job has a shape at least"
            raise error
        return first

    async def resize(self, turn: Turn) -> Turn:
        """Begin to have the replicas that a running job is to have, or say why it goes on as it is."""
        job, refusal = turn.job, None
        if job.queue is not None:
            why = f"Kueue's queue {job.queue} admitted these; set suspend to true, and to false again"
            return resizing.hold(turn, resizing.BY_KUEUE, why)
        before = job.status.chosen
        assert before is not None, "only what was chosen is chosen anew"
        if shapes.is_asked(job):
            return await self._reshape(turn, before)
        for shape in resizing.with_replicas(_as_written(job), above=before.data):
            begun = await self._begin_from_memory(turn, shape, before)
            if isinstance(begun, Turn):
                return begun
            try:
                alike = shapes.alike(before, shape.spec.parallelism.data or 1) if shape.spec else None
                chosen = alike if alike and self._shares_processors else await self._plan(shape)
            except (SpecError, NoPlacementError) as error:
                cannot = f"; nor from memory: {begun}" if begun else ""
                refusal = refusal or (resizing.CANNOT_BE_PLANNED, f"{error}{cannot}")
                continue
            why_not = await self._why_no_room(job, shape, chosen, grows=chosen.data > before.data)
            if why_not is None:
                return resizing.begin(turn, chosen, why=begun)
            refusal = refusal or (NO_ROOM, why_not)
        assert refusal is not None, "a job has a shape at least"
        return resizing.hold(turn, *refusal)

    async def _reshape(self, turn: Turn, before: Chosen) -> Turn:
        """Begin to have the stages, layers or schedule that the spec asks for now, with the replicas that it asks for.

        Where memory does not do it, the stages write a checkpoint, once what is asked for can be
        planned.
        """
        job = turn.job
        goal = shapes.reshaped(job) or before
        chosen = shapes.alike(goal, job.wanted_replicas or goal.data) or goal
        assert job.written is not None, "only readable jobs are shaped"
        shape = replace(_as_written(job), spec=resolved(job.written, chosen))
        undivided = shapes.undivided(job.status)
        grows = chosen.data * chosen.pipeline > before.data * before.pipeline
        try:
            why_not = await self._why_no_room(replace(job, status=undivided), shape, chosen, grows=grows)
        except SpecError as error:
            return resizing.hold(turn, resizing.CANNOT_BE_PLANNED, str(error))
        if why_not is not None:
            return resizing.hold(turn, NO_ROOM, why_not)
        begun = await self._from_memory.begin(turn, chosen, divides=True)
        return begun if isinstance(begun, Turn) else resizing.begin(turn, chosen, why=begun)

    async def _begin_from_memory(self, turn: Turn, shape: Job, before: Chosen) -> Turn | str:
        """Begin to go over to a shape in memory; or say why not, '' where that is not asked for."""
        assert shape.spec is not None, "only readable jobs are planned"
        if not shape.spec.recovery.in_place:
            return ""
        chosen = shapes.alike(before, shape.spec.parallelism.data or 1)
        if chosen is None:
            return f"micro-batches of {before.micro_batch_size} sequences do not share a step equally"
        why_not = await self._why_no_room(turn.job, shape, chosen, grows=chosen.data > before.data)
        return why_not or await self._from_memory.begin(turn, chosen)

    async def _plan(self, shape: Job) -> Chosen:
        return await beside_the_loop(self._planner.choose, shape, self._admissions.ground())

    async def _why_no_room(self, job: Job, shape: Job, chosen: Chosen, *, grows: bool) -> str | None:
        assert shape.spec is not None, "only readable jobs are planned"
        status = without_nodes(job.status, comes_back=True) if job.is_placed else job.status
        asking = replace(shape, spec=resolved(shape.spec, chosen), status=status)
        return await self._admissions.why_no_room(asking, grows=grows)


def _as_written(job: Job) -> Job:
    """Return the job with all that its spec leaves open."""
    return read_job({**job.raw, "status": {}})
