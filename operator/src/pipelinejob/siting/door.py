"""The one way from a job to its plan: the operator, `plan`, `run` and the pages all ask here.

On nodes a job is drafted, priced, placed and planned again; what it leaves open is chosen by
placing the best configurations that a search found and comparing their steps there. For devices
without nodes the search's own prediction counts, and where nothing is known of devices, the
manifest alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipelinejob.base.errors import NoPlacementError, SpecError
from pipelinejob.contract.plan import Placement, Plan
from pipelinejob.fabric.pool import Pool
from pipelinejob.planning.planner import assembled, check_covers, counted, make_plan, on_devices
from pipelinejob.search.best import search
from pipelinejob.search.found import Candidate, Found, rank
from pipelinejob.search.reasons import Rejected
from pipelinejob.siting.alternatives import About, Alternative, priced
from pipelinejob.siting.configurations import fields_of, in_turn, is_of, named, others_than, runnable
from pipelinejob.siting.request import DoesNotFit, Planned, Request
from pipelinejob.siting.site import Draft, Site
from pipelinejob.siting.ways import MakePlan, ways_to_fit
from pipelinejob.spec.job import Mode, PipelineJobSpec
from pipelinejob.spec.network.objective import Objective

MOST_PLACED = 5  # candidates among which what is open is chosen; each takes up to half a second to be priced

_OBJECTIVES = {
    Objective.CHAIN: "chain: the least step, whatever room it leaves",
    Objective.PACK: "pack: the tightest domains, then the least step in them",
}


class NoDeviceError(SpecError):
    """No node that the job may use has a device to compute on."""


def plan_job(request: Request) -> Planned | DoesNotFit:
    """Plan a job where the request says that it may run; choose what its spec leaves open.

    Raises SpecError for a job that cannot be planned there (NoDeviceError where that is for want
    of any device), and HardwareError for a link kind that nobody has described.
    """
    request = replace(request, spec=one_chain(request.spec))
    if not request.may_choose_tensor:
        request = replace(request, spec=runnable(request.spec))
    if isinstance(request.on, Site):
        return _OnSite(request, request.on).planned()
    if isinstance(request.on, Pool):
        return _on_devices(request, request.on)
    return _as_written(request)


def one_chain(spec: PipelineJobSpec) -> PipelineJobSpec:
    """Return the spec of one chain of a job that serves, each of which is planned and placed by itself."""
    if spec.mode is not Mode.SERVE or spec.parallelism.data == 1:
        return spec
    return spec.model_copy(update={"parallelism": spec.parallelism.model_copy(update={"data": 1})})


def _as_written(request: Request) -> Planned:
    """Plan what a manifest fixes, where nothing is said of devices."""
    spec = request.spec
    costs = request.measured or counted(spec, None, request.hardware)
    plan = make_plan(
        namespace=request.namespace, name=request.name, spec=spec, profile=costs, hardware=request.hardware
    )
    return Planned(plan=plan, costs=costs)


def _on_devices(request: Request, pool: Pool) -> Planned:
    """Plan for devices without nodes, with the links that the search assumed."""
    best = (found := search(request.spec, pool, hardware=request.hardware, profile=request.measured)).best
    costs = request.measured or counted(best.spec, best.devices, request.hardware)
    costs = on_devices(costs, best.spec, best.devices, request.hardware)
    check_covers(costs, best.spec)
    plan = assembled(best.choice, namespace=request.namespace, name=request.name, spec=best.spec, devices=best.devices)
    others = found if request.spec.is_open else _others(request, pool) if request.num_alternatives else None
    return Planned(
        plan=plan,
        costs=costs,
        chosen=best.chosen if request.spec.is_open else None,
        alternatives=_unplaced(best, others, most=request.num_alternatives or 0) if others else (),
        rejected=others.rejected if others else (),
        found=others,
    )


def _others(request: Request, pool: Pool) -> Found | None:
    """Search for other configurations of a decided job; None if there are none."""
    try:
        return others_than(request.spec, pool, hardware=request.hardware, measured=request.measured)
    except SpecError:  # nothing else can be planned
        return None


def _unplaced(best: Candidate, found: Found, *, most: int) -> tuple[Alternative, ...]:
    """Compare the best candidates of other degrees with the one that is planned."""
    others = [each for each in in_turn(found) if not is_of(each, best.spec)]
    return tuple(
        Alternative(
            about=About.CONFIGURATION,
            what=named(each),
            step_s=each.step_s,
            price=best.tokens_per_s / each.tokens_per_s - 1,
            bubble_ratio=each.bubble_ratio,
            memory_bytes=max(each.memory_bytes),
            fields=fields_of(each.chosen),
        )
        for each in others[:most]
    )


@dataclass(frozen=True, kw_only=True)
class _Placed:
    """A configuration of the search, its draft, and its plan for the place that it gets."""

    candidate: Candidate
    draft: Draft
    placed: Draft

    @property
    def rank(self) -> tuple[float, int, int, int]:
        """Compare as the search does, by the step where the configuration stands."""
        return rank(replace(self.candidate, step_s=self.placed.plan.prediction.step_s))


class _OnSite:
    """Plans one request on given nodes."""

    def __init__(self, request: Request, site: Site) -> None:
        self._request = request
        self._site = site

    def planned(self) -> Planned | DoesNotFit:
        return self._chosen() if self._request.spec.is_open else self._decided()

    def _decided(self) -> Planned | DoesNotFit:
        """Plan what the manifest fixes."""
        draft = self._draft(self._request.spec)
        try:
            placed = draft.placed(draft.place())
        except NoPlacementError as error:
            return self._lacking(draft, str(error))
        wanted = self._request.num_alternatives or 0
        others = _others(self._request, self._site.pool(draft.spec)) if wanted else None
        candidates = [each for each in in_turn(others) if not is_of(each, draft.spec)] if others else []
        other, misplaced = self._place(candidates, most=wanted)
        return Planned(
            plan=placed.plan,
            costs=placed.costs,
            alternatives=(*self._other_places(draft, placed.plan), *_compared(placed.plan, other)),
            rejected=(*misplaced, *(others.rejected if others else ())),
            found=others,
        )

    def _chosen(self) -> Planned | DoesNotFit:
        """Choose what is open: place the best configurations, and compare their steps there."""
        try:
            found = self._search(self._site)
        except SpecError as error:
            return self._idle_alone(error)
        wanted = self._request.num_alternatives or 0
        placed, misplaced = self._place(in_turn(found), most=max(MOST_PLACED, wanted + 1))
        if not placed:
            return self._lacking(self._draft(found.best.spec), misplaced[0].why)
        best = min(placed[:MOST_PLACED], key=lambda each: each.rank)
        plan = best.placed.plan
        others = [each for each in placed if each is not best]
        return Planned(
            plan=plan,
            costs=best.placed.costs,
            chosen=best.candidate.chosen,
            alternatives=(*self._other_places(best.draft, plan), *_compared(plan, others)[:wanted]),
            rejected=(*misplaced, *found.rejected),
            found=found,
        )

    def _search(self, site: Site) -> Found:
        request, pool = self._request, site.pool(self._request.spec)
        if not pool.groups:
            raise NoDeviceError("spec.parallelism", "no device is free that its stages could compute on")
        return search(request.spec, pool, hardware=request.hardware, profile=request.measured)

    def _idle_alone(self, error: SpecError) -> DoesNotFit:
        """Answer for a job that cannot be planned on the free devices: what the same nodes could hold if idle.

        Raises the error if that is nothing either.
        """
        if self._request.idle is None:
            raise error
        best = self._search(self._request.idle).best
        draft = self._draft(best.spec, self._request.idle)
        return self._lacking(draft, f"{error.problem}; an idle cluster would hold {named(best)}")

    def _place(self, candidates: Sequence[Candidate], *, most: int) -> tuple[list[_Placed], tuple[Rejected, ...]]:
        """Place the first candidates until so many have a place; return those, and those that have none."""
        placed: list[_Placed] = []
        misplaced: list[Rejected] = []
        for candidate in candidates:
            if len(placed) == most:
                break
            try:
                draft = self._draft(candidate.spec)
                placed.append(_Placed(candidate=candidate, draft=draft, placed=draft.placed(draft.place())))
            except (NoPlacementError, SpecError) as error:
                misplaced.append(Rejected(what=named(candidate), why=str(error)))
        return placed, tuple(misplaced)

    def _other_places(self, draft: Draft, own: Plan) -> tuple[Alternative, ...]:
        """Compare the places that other objectives would choose, where they are others than the job's own."""
        if self._request.num_alternatives is None:
            return ()
        seen, found = {_nodes(own.placement)}, list[Alternative]()
        for objective, what in _OBJECTIVES.items():
            try:
                placement = draft.place(objective=objective)
            except NoPlacementError:  # it fits, but a search may be bounded
                continue
            if _nodes(placement) not in seen:
                seen.add(_nodes(placement))
                fields: dict[str, object] = {"spec.topology.objective": objective.value}
                other = draft.placed(placement).plan
                found.append(priced(own, other, about=About.PLACEMENT, what=what, fields=fields))
        return tuple(found)

    def _lacking(self, draft: Draft, shortfall: str) -> DoesNotFit:
        ways: tuple[Alternative, ...] = ()
        if self._request.num_alternatives is not None:
            ways = ways_to_fit(draft.plan, draft.spec, self._site.topology, self._placed)
        return DoesNotFit(shortfall=shortfall, ways=ways, plan=draft.plan, costs=draft.costs)

    def _placed(self, spec: PipelineJobSpec) -> MakePlan:
        draft = self._draft(spec)
        placement = draft.place()
        return lambda: draft.placed(placement).plan

    def _draft(self, spec: PipelineJobSpec, site: Site | None = None) -> Draft:
        request = self._request
        return (site or self._site).draft(
            spec, namespace=request.namespace, name=request.name, profile=request.measured
        )


def _compared(plan: Plan, others: Sequence[_Placed]) -> tuple[Alternative, ...]:
    """Compare placed configurations with a plan, the quickest first."""
    return tuple(
        priced(
            plan,
            each.placed.plan,
            about=About.CONFIGURATION,
            what=named(each.candidate),
            fields=fields_of(each.candidate.chosen),
        )
        for each in sorted(others, key=lambda each: -each.placed.plan.prediction.tokens_per_s)
    )


def _nodes(placement: Placement | None) -> tuple[str, ...]:
    return tuple(each.node for each in placement.assignments) if placement else ()
