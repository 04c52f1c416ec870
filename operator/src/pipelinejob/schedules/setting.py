"""The input of a schedule's maker: sizes, and for those made for them, costs and memory."""

from dataclasses import dataclass

from pipelinejob.schedules.actions import Route, ScheduleError
from pipelinejob.schedules.costs import CostModel, Costs, equal_shares


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One pipeline's step.

    `num_chunks` None means the schedule's usual number. `costs` are for schedules that look at
    them; without any, forward, input gradient and weight gradient count as equally long and links
    as free. `activation_caps` bounds each rank's activations, in shares of a micro-batch
    (`memory.peak_activations`). `update_interval` is how many micro-batches an asynchronous
    schedule's update gathers; with `vertical_sync` all ranks use the weight version that the first
    one used.
    """

    num_ranks: int
    num_micro_batches: int
    num_chunks: int | None = None
    costs: CostModel | None = None
    activation_caps: tuple[float, ...] | None = None
    update_interval: int | None = None
    vertical_sync: bool = False

    def costs_of(self, *routes: Route) -> Costs:
        """Return the costs of the stages of routes."""
        return (self.costs or equal_shares(self.num_ranks))(routes)

    def chunks(self, usual: int, *, least: int = 1) -> int:
        """Return the number of chunks on a rank.

        Raises ScheduleError when fewer are asked for than the schedule needs.
        """
        wanted = usual if self.num_chunks is None else self.num_chunks
        if wanted < least:
            raise ScheduleError(f"{wanted} chunks on a rank are too few; this schedule needs at least {least}")
        return wanted
