"""What is left open, chosen for a site: the best configurations are placed one by one, and their placed steps compared.

A search reckons with the links that a pool's nodes have among each other; which of them a configuration really gets is
only known once it is placed. Of the search's candidates the few that promise most are placed, the best of each degrees.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelinejob.cost import Profile
from pipelinejob.errors import NoPlacementError, SpecError
from pipelinejob.placement.room import Demand
from pipelinejob.search.found import Candidate
from pipelinejob.site import Draft, Site
from pipelinejob.spec import PipelineJobSpec

MOST_PLACED = 5  # candidates; each takes up to half a second to be priced

Demands = Callable[[PipelineJobSpec], Sequence[Demand]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedCandidate:
    """A configuration with its place."""

    candidate: Candidate
    draft: Draft


@dataclass(frozen=True, slots=True, kw_only=True)
class Misplaced:
    """A configuration without one, and why."""

    candidate: Candidate
    why: str


def place_candidates(
    site: Site,
    candidates: Sequence[Candidate],
    demands_of: Demands,
    *,
    namespace: str,
    name: str,
    profile: Profile | None = None,
    most: int = MOST_PLACED,
) -> tuple[tuple[PlacedCandidate, ...], tuple[Misplaced, ...]]:
    """Place the first candidates until so many have a place; give those, the quickest first, and those that have none.

    `demands_of` says what each rank of a spec asks for.
    """
    placed: list[PlacedCandidate] = []
    misplaced: list[Misplaced] = []
    for candidate in candidates:
        if len(placed) == most:
            break
        try:
            draft = site.draft(candidate.spec, namespace=namespace, name=name, profile=profile)
            placement = draft.place(demands_of(candidate.spec))
            placed.append(PlacedCandidate(candidate=candidate, draft=draft.placed(placement)))
        except (NoPlacementError, SpecError) as error:
            misplaced.append(Misplaced(candidate=candidate, why=str(error)))
    placed.sort(key=lambda each: -each.draft.plan.prediction.tokens_per_s)
    return tuple(placed), tuple(misplaced)
