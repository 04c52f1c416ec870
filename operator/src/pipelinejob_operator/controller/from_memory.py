"""Whether a job that trains can be given other replicas from memory: by its status, its plan, and where room is."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from pipelinejob.base.errors import NoPlacementError, SpecError
from pipelinejob.spec.chosen import Chosen
from pipelinejob_operator.admission.pods.substitute import Place
from pipelinejob_operator.controller.admission.admission_loop import AdmissionLoop
from pipelinejob_operator.controller.beside_loop import beside_the_loop
from pipelinejob_operator.controller.planning import Planner
from pipelinejob_operator.controller.turns import moving
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

    async def begin(self, turn: Turn, chosen: Chosen) -> Turn | str:
        """Begin to go over to these degrees, which have room; or say why that is not done from memory."""
        job = turn.job
        why_not = moving.why_not(job, chosen)
        if why_not:
            return why_not
        wanted = moving.new_ranks(job, chosen)
        places = self._places(job, wanted, turn.now) if wanted else {}
        if len(places) < len(wanted):
            return "there is no room for more replicas beside the stages as they stand"
        begun = moving.begin(turn, chosen, places)
        try:
            await beside_the_loop(self._plan, moving.as_decided(job, begun.status))
        except (SpecError, NoPlacementError) as error:
            return f"with the layers as they stand no plan can be made: {error}"
        return begun

    def _plan(self, job: Job) -> None:
        self._planner.plan(job, self._admissions.ground())
