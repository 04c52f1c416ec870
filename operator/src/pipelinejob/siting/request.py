"""What planning is asked for, and its two answers. Values alone; `door` turns one into the other."""

from dataclasses import dataclass, field

from pipelinejob.contract.plan import Plan
from pipelinejob.costs.layers import Profile
from pipelinejob.fabric import hardware as hardware_data
from pipelinejob.fabric.hardware import Hardware
from pipelinejob.fabric.pool import Pool
from pipelinejob.search.found import Found
from pipelinejob.search.reasons import Rejected
from pipelinejob.siting.alternatives import Alternative
from pipelinejob.siting.site import Site
from pipelinejob.spec.chosen import Chosen
from pipelinejob.spec.job import PipelineJobSpec


@dataclass(frozen=True, kw_only=True)
class Request:
    """A job, and what is known of where it would run: nodes, devices that nobody has named nodes for, or nothing.

    `measured` costs count before counted ones. `num_alternatives` other configurations are priced,
    and other places, or what would fit instead; None: only the plan is wanted, which is the
    quickest to make.
    """

    namespace: str
    name: str
    spec: PipelineJobSpec
    on: Site | Pool | None = None
    idle: Site | None = None  # the nodes of `on` as if all work on them were done
    measured: Profile | None = None
    hardware: Hardware = field(default_factory=hardware_data.default)
    may_choose_tensor: bool = False  # which can be planned, but not yet be run
    num_alternatives: int | None = None


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan, the costs that it was made with, and what else there is."""

    plan: Plan
    costs: Profile
    chosen: Chosen | None = None  # of what the request left open; None where it left nothing
    alternatives: tuple[Alternative, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    found: Found | None = None  # by the search that alternatives or choice come from


@dataclass(frozen=True, kw_only=True)
class DoesNotFit:
    """There is no room now. `plan` is without a place; each of the `ways` changes the request so that it fits now."""

    shortfall: str
    ways: tuple[Alternative, ...]
    plan: Plan
    costs: Profile
