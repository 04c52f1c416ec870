"""Whether a job that trains can go over to another shape from memory: by its status, its plan, and where room is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from pipelinejob.base.errors import NoPlacementError, SpecError
from pipelinejob.contract.plan import Plan
from pipelinejob.spec.chosen import Chosen, resolved
from pipelinejob_operator.admission.pods.substitute import Place
from pipelinejob_operator.controller.admission.admission_loop import AdmissionLoop
from pipelinejob_operator.controller.beside_loop import beside_the_loop
from pipelinejob_operator.controller.planning import Planner
from pipelinejob_operator.controller.turns import moving, shapes
from pipelinejob_operator.controller.turns.transitions import Turn
from pipelinejob_operator.objects.job import Job, Rank

Places = Callable[[Job, Sequence[Rank], datetime], Mapping[Rank, Place]]


class FromMemory:
    """Begins the change, or says why the job has to stop for it."""

    def __init__(self, planner: Planner, admissions: AdmissionLoop, *, places: Places) -> None:
        """`places` finds nodes for further ranks of a job that runs, beside those that it has."""
        self._planner = planner
        self._admissions = admissions
        self._places = places

    async def begin(self, turn: Turn, chosen: Chosen, *, divides: bool = False) -> Turn | str:
        """Begin to go over to this, which has room; or say why that is not done from memory.

        Where it `divides` the layers anew, they are planned as the spec says, or by their costs.
        """
        job = turn.job
        why_not = shapes.why_not(job, chosen)
        if why_not:
            return why_not
        wanted = shapes.new_ranks(job, chosen)
        asking = replace(job, spec=resolved(job.spec, chosen)) if job.spec and job.leaves_open else job
        places = self._places(asking, wanted, turn.now) if wanted else {}
        if len(places) < len(wanted):
            return f"there is no room for {shapes.counted(len(wanted), 'more stage')} beside those that stand"
        begun = moving.begin(turn, chosen, places)
        try:
            plan = await beside_the_loop(self._plan, moving.as_decided(job, begun.status, divides=divides))
        except (SpecError, NoPlacementError) as error:
            return "no plan can be made" + (f": {error}" if divides else f" with the layers as they stand: {error}")
        return moving.begin(turn, chosen, places, layers_of(plan)) if divides else begun

    def _plan(self, job: Job) -> Plan:
        return self._planner.plan(job, self._admissions.ground())


def layers_of(plan: Plan) -> tuple[int, ...]:
    """Return the layers of each stretch of a plan."""
    return tuple(end - first for first, end in plan.cuts)
