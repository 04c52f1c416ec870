"""What is planned, and what comes of it: the values that all ways to a plan share."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelinejob.cost import Profile
from pipelinejob.errors import SpecError
from pipelinejob.hardware import Hardware
from pipelinejob.plan import Plan
from pipelinejob.search import Candidate
from pipelinejob.spec import Device, PipelineJobSpec
from pipelinejob_operator.cli.manifests import GivenJob
from pipelinejob_operator.report.plan_view import PlanView


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A job to plan, and what is known for it.

    `spec` is its own, or what the command line made of it. Of other configurations at most `most` are told of.
    """

    job: GivenJob
    spec: PipelineJobSpec
    hardware: Hardware
    measured: Profile | None = None
    product: str | None = None  # what the devices are, where no node says it
    most: int = 4
    is_job: bool = True  # not a mere model, of which more can be planned than the trainer runs

    def best_of(self, candidates: Sequence[Candidate]) -> Candidate:
        """Give the quickest of some candidates; for a job, as the operator would, of those that can be run.

        Raises SpecError if none can.
        """
        if not self.is_job or self.spec.parallelism.tensor is not None:
            return candidates[0]
        best = next((each for each in candidates if each.chosen.tensor == 1), None)
        if best is None:
            problem = f"nothing with 1 was found, and more cannot be run yet; the best would be {candidates[0].title}"
            raise SpecError("spec.parallelism.tensor", problem)
        return best

    @property
    def has_alternatives(self) -> bool:
        """Say whether other configurations can be compared: not on shared processors, nor where nothing is known."""
        model = self.spec.model
        is_counted = model.gpt is not None or model.config is not None
        return self.most > 0 and self.spec.device is Device.GPU and (is_counted or self.measured is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What came of planning a job, and the costs that it was planned with."""

    view: PlanView
    costs: Profile

    @property
    def plan(self) -> Plan:
        """Give the plan."""
        return self.view.plan
