"""What is planned, and what comes of it: the values that all ways to a plan share."""

from dataclasses import dataclass

from pipelinejob.cost import Profile
from pipelinejob.hardware import Hardware
from pipelinejob.plan import Plan
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
