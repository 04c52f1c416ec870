"""Plans single options of a search, as `planner.make_plan` would."""

from pipelinejob.costs.layers import Profile
from pipelinejob.costs.links import Links
from pipelinejob.planning.choice import EFFORT, FEW_ATTEMPTS, Choice
from pipelinejob.planning.playing import check_peaks, setting_of
from pipelinejob.planning.recomputing import choose
from pipelinejob.planning.step_prediction import predict_step
from pipelinejob.schedules.memory import peak_activations
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.search.found import Candidate
from pipelinejob.search.layout_costs import LayoutCosts
from pipelinejob.search.space import Layout, Option, Recompute, Space
from pipelinejob.search.step_bounds import layout_floor_s
from pipelinejob.spec.chosen import Chosen, resolved


class Planning:
    """Makes candidates of the options of a space."""

    def __init__(self, space: Space, costs: LayoutCosts) -> None:
        self._spec = space.spec
        self._space = space
        self._costs = costs

    def candidate(self, option: Option, effort: int) -> Candidate:
        """Plan an option with the links that shorten its step the most.

        `effort` is that of `choice.choose`.

        Raises SpecError where it cannot be, TooLargeError for want of memory.
        """
        layout, profile = option.layout, self._costs.profile(option.layout)
        every_links = (self._space.links(layout, near) for near in self._space.nears(layout))
        made = (
            self._made(layout, profile, links, self._chosen(option, profile, links, effort)) for links in every_links
        )
        return min(made, key=lambda each: each.step_s)

    def searched(self, layout: Layout, leader: Candidate | None, virtual_stages: int | None) -> Candidate:
        """Plan a layout with a schedule that is searched for.

        Of a candidate of it, on the same links.

        Raises SpecError, as `candidate` does.
        """
        if leader is None:
            recompute = self._space.recomputes()[0]
            return self.candidate(Option(layout, ScheduleName.AUTO, virtual_stages, recompute), EFFORT)
        changed = {"schedule": ScheduleName.AUTO, "virtual_stages": virtual_stages}
        chosen, profile = leader.chosen.model_copy(update=changed), self._costs.profile(layout)
        spec = resolved(self._spec, chosen)
        choice = choose(spec, profile, links=leader.links, attempts=FEW_ATTEMPTS)  # each takes long
        return self._made(layout, profile, leader.links, (_as_made(chosen, choice), choice))

    def _made(self, layout: Layout, profile: Profile, links: Links, made: tuple[Chosen, Choice]) -> Candidate:
        chosen, choice = made
        spec = resolved(self._spec, chosen)
        self._check_caps(chosen, choice)
        promised = predict_step(choice.division, choice.schedule_for, choice.length, replicas=chosen.data)
        step_s = promised.step_s + profile.step_overhead_s
        return Candidate(
            layout=layout,
            chosen=chosen,
            spec=spec,
            step_s=step_s,
            floor_s=layout_floor_s(layout, self._costs.table(layout), self._costs.of(layout).speeds),
            tokens_per_s=chosen.data * layout.sequences * spec.data.sequence_length / step_s,
            bubble_ratio=sum(promised.bubble_ratios) / len(promised.bubble_ratios),
            memory_bytes=choice.memory_bytes,
            layers=tuple(end - first for first, end in choice.division.cuts),
            devices=self._space.devices(layout),
            links=links,
            choice=choice,
        )

    def _check_caps(self, chosen: Chosen, choice: Choice) -> None:
        """Hold named schedules to the caps that a manifest gives beside `auto`.

        To its own, a schedule is made.
        """
        caps = setting_of(self._spec.schedule, chosen.pipeline).activation_caps
        if caps is not None and chosen.schedule is not self._spec.schedule.name:
            peaks = choice.length.values(lambda count: tuple(peak_activations(choice.schedule_for(count))))
            check_peaks(chosen.schedule, peaks, caps)

    def _chosen(self, option: Option, profile: Profile, links: Links, effort: int) -> tuple[Chosen, Choice]:
        given = self._spec.schedule
        if option.recompute is not Recompute.SOME:
            is_given = option.recompute is Recompute.GIVEN
            chosen = option.chosen(given.recompute_stages, given.recompute_layers) if is_given else option.chosen()
            return chosen, choose(resolved(self._spec, chosen), profile, links=links, effort=effort)
        left_open = resolved(self._spec, option.chosen(layers=()))
        choice = choose(left_open, profile, links=links, effort=effort)
        return _as_made(option.chosen(layers=()), choice), choice


def _as_made(chosen: Chosen, choice: Choice) -> Chosen:
    """Write what came to be computed again into what was chosen, where it was left open."""
    if chosen.recompute_layers is None:
        return chosen
    layers = choice.division.schedule.recompute_layers
    return chosen.model_copy(update={"recompute": layers is not None, "recompute_layers": layers})
