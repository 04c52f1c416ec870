"""A job planned onto nodes: its place, what else there would be, and what would fit if it does not."""

from collections.abc import Sequence

from pipelinejob.errors import NoPlacementError, SpecError
from pipelinejob.objective import Objective
from pipelinejob.plan import Placement, Plan
from pipelinejob.search.best import search
from pipelinejob.search.found import Candidate, Found
from pipelinejob.site import Draft
from pipelinejob.site_choice import Misplaced, PlacedCandidate, place_candidates
from pipelinejob.spec import PipelineJobSpec
from pipelinejob.topology import Topology
from pipelinejob_operator.cli.plan.ground import Ground
from pipelinejob_operator.cli.plan.made import Made, Wanted
from pipelinejob_operator.cli.plan.searched import fields_of, in_turn, is_of, named, notes_of, others_than, rejected_of
from pipelinejob_operator.cli.plan.ways import alternative, ways_to_fit
from pipelinejob_operator.report.plan_view import About, Alternative, PlanView, Rejected

_OBJECTIVES = {
    Objective.CHAIN: "chain: the least step, whatever room it leaves",
    Objective.PACK: "pack: the tightest domains, then the least step in them",
}


def plan_on_nodes(wanted: Wanted, ground: Ground) -> Made:
    """Plan a job for the place that it gets; one that gets none now is told of as such.

    Raises SpecError for a job that cannot be planned.
    """
    planned = _OnNodes(wanted, ground)
    return planned.chosen() if wanted.spec.is_open else planned.as_it_is()


class _OnNodes:
    def __init__(self, wanted: Wanted, ground: Ground) -> None:
        self._wanted = wanted
        self._ground = ground

    def as_it_is(self) -> Made:
        """Plan what the manifest fixes."""
        spec = self._wanted.spec
        draft = self._draft_of(spec)
        try:
            placed = draft.placed(draft.place(self._ground.demands_of(spec)))
        except NoPlacementError as error:
            return self._lacking(draft, str(error), self._ways_to_fit(draft))
        others, rejected, notes = self._others(placed.plan)
        return self._told(
            placed, alternatives=(*self._other_places(draft, placed), *others), rejected=rejected, notes=notes
        )

    def chosen(self) -> Made:
        """Choose what is open: by the steps that the best configurations have where they would stand."""
        wanted = self._wanted
        try:
            found = self._search(self._ground)
        except SpecError as error:
            return self._idle_alone(error)
        placed, misplaced = self._place(in_turn(found), most=wanted.most + 1)
        rejected = (*(Rejected(what=named(each.candidate), why=each.why) for each in misplaced), *rejected_of(found))
        if not placed:
            draft = self._draft_of(found.best.spec)
            return self._lacking(draft, misplaced[0].why, self._ways_to_fit(draft))
        best, *others = placed
        plan = best.draft.plan
        return self._told(
            best.draft,
            alternatives=(
                *self._other_places(self._draft_of(best.candidate.spec), best.draft),
                *(_configuration(plan, each) for each in others),
            ),
            rejected=rejected,
            notes=tuple(notes_of(found)),
        )

    def _search(self, ground: Ground) -> Found:
        wanted = self._wanted
        pool = ground.site.pool(wanted.spec)
        if not pool.groups:
            raise SpecError("spec.parallelism", "no device is free that its stages could compute on")
        return search(wanted.spec, pool, hardware=wanted.hardware, profile=wanted.measured)

    def _idle_alone(self, error: SpecError) -> Made:
        """Tell of a job for which nothing can be planned on what is free: what the same nodes could hold if idle.

        Raises the error if that is nothing either.
        """
        idle = self._ground.idle
        if idle is self._ground:
            raise error
        best = self._search(idle).best
        job, measured = self._wanted.job, self._wanted.measured
        draft = idle.site.draft(best.spec, namespace=job.namespace, name=job.name, profile=measured)
        shortfall = f"{error.problem}; an idle cluster would hold {named(best)}"
        return self._lacking(draft, shortfall, self._ways_to_fit(draft))

    def _others(self, plan: Plan) -> tuple[tuple[Alternative, ...], tuple[Rejected, ...], tuple[str, ...]]:
        """Look for other configurations on as many devices, and place those that promise most."""
        wanted = self._wanted
        if not wanted.has_alternatives:
            return (), (), ()
        pool = self._ground.site.pool(wanted.spec)
        try:
            found = others_than(wanted.spec, pool, hardware=wanted.hardware, profile=wanted.measured)
        except SpecError:  # nothing else can be planned
            return (), (), ()
        if found is None:
            return (), (), ()
        candidates = [each for each in in_turn(found) if not is_of(each, wanted.spec)]
        placed, misplaced = self._place(candidates, most=wanted.most)
        rejected = (*(Rejected(what=named(each.candidate), why=each.why) for each in misplaced), *rejected_of(found))
        return tuple(_configuration(plan, each) for each in placed), rejected, tuple(notes_of(found))

    def _place(
        self, candidates: Sequence[Candidate], *, most: int
    ) -> tuple[tuple[PlacedCandidate, ...], tuple[Misplaced, ...]]:
        return place_candidates(
            self._ground.site,
            candidates,
            self._ground.demands_of,
            namespace=self._wanted.job.namespace,
            name=self._wanted.job.name,
            profile=self._wanted.measured,
            most=most,
        )

    def _other_places(self, draft: Draft, placed: Draft) -> tuple[Alternative, ...]:
        """Give the places that other objectives would choose, where they are others than the job's own."""
        own, found = placed.plan, list[Alternative]()
        seen = {_nodes(own.placement)}
        for objective, what in _OBJECTIVES.items():
            try:
                placement = draft.place(self._ground.demands_of(draft.spec), objective=objective)
            except NoPlacementError:  # it fits, but a search may be bounded
                continue
            if _nodes(placement) not in seen:
                seen.add(_nodes(placement))
                fields: dict[str, object] = {"spec.topology.objective": objective.value}
                other = draft.placed(placement).plan
                found.append(alternative(own, other, about=About.PLACEMENT, what=what, fields=fields))
        return tuple(found)

    def _ways_to_fit(self, draft: Draft) -> tuple[Alternative, ...]:
        """Try what the job could ask for instead."""

        def place(spec: PipelineJobSpec) -> Placement:
            return self._draft_of(spec).place(self._ground.demands_of(spec))

        def plan(spec: PipelineJobSpec, placement: Placement) -> Plan:
            return self._draft_of(spec).placed(placement).plan

        return ways_to_fit(draft.plan, draft.spec, self._ground.site.topology, place=place, make_plan=plan)

    def _draft_of(self, spec: PipelineJobSpec) -> Draft:
        job, measured = self._wanted.job, self._wanted.measured
        return self._ground.site.draft(spec, namespace=job.namespace, name=job.name, profile=measured)

    def _lacking(self, draft: Draft, shortfall: str, ways: tuple[Alternative, ...]) -> Made:
        return self._told(draft, shortfall=shortfall, alternatives=ways)

    def _told(
        self,
        draft: Draft,
        *,
        alternatives: tuple[Alternative, ...],
        shortfall: str | None = None,
        rejected: tuple[Rejected, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> Made:
        plan = draft.plan
        view = PlanView(
            plan=plan,
            where=self._ground.where,
            shortfall=shortfall,
            device_memory=draft.costs.memory_limits(len(plan.stages)),
            alternatives=alternatives,
            rejected=rejected,
            fabric=self._ground.fabric(plan.placement),
            tree=_tree(self._ground.site.topology),
            notes=(*self._ground.site.topology.notes, *notes),
        )
        return Made(view=view, costs=draft.costs)


def _configuration(plan: Plan, each: PlacedCandidate) -> Alternative:
    fields = fields_of(each.candidate)
    return alternative(plan, each.draft.plan, about=About.CONFIGURATION, what=named(each.candidate), fields=fields)


def _tree(topology: Topology) -> str:
    """Say what the network is seen as: the levels of its tree, and how many domains each has."""
    counts = [len({path[:depth] for path in topology.paths.values()}) for depth in range(1, len(topology.levels) + 1)]
    levels = " > ".join(f"{count} {level.name}" for count, level in zip(counts, topology.levels, strict=True))
    return f"{levels} (profile {topology.profile})"


def _nodes(placement: Placement | None) -> tuple[str, ...]:
    return tuple(each.node for each in placement.assignments) if placement else ()
