"""What the schedule commands are asked for: options, and what they mean once read and checked."""

import difflib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from pipelinejob.base.errors import PipelineJobError
from pipelinejob.schedules.costs import CostModel, Link, shares
from pipelinejob.schedules.families import FAMILIES
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.spec.schedules.rules import MAX_WRITTEN

_MAX_RANKS = 1024

RanksOption = Annotated[int, typer.Option("--ranks", "-p", metavar="P", help="Ranks of the pipeline, a device each.")]
MicroBatchesOption = Annotated[int, typer.Option("--micro-batches", "-m", metavar="M", help="Micro-batches of a step.")]
ChunksOption = Annotated[
    int | None,
    typer.Option("--chunks", "-v", metavar="V", help="Chunks on each rank, for schedules that have a choice."),
]
ForwardOption = Annotated[str, typer.Option(metavar="TIME", help="A micro-batch's forward on a rank.")]
InputOption = Annotated[
    str, typer.Option("--backward-input", metavar="TIME", help="Its input gradient; a full backward takes both.")
]
WeightOption = Annotated[str, typer.Option("--backward-weight", metavar="TIME", help="Its weight gradients.")]
CommOption = Annotated[str, typer.Option(metavar="TIME", help="From a rank's sending a message to its arrival.")]
SlowdownOption = Annotated[
    str, typer.Option(metavar="FACTOR", help="What a rank's times are multiplied by; above 1 it is a straggler.")
]
BlockingOption = Annotated[
    bool, typer.Option("--no-overlap", help="A rank waits for its messages to arrive, instead of computing on.")
]
CapOption = Annotated[
    str | None,
    typer.Option(metavar="COUNT", help="What a rank may hold: activations of so many micro-batches."),
]
IntervalOption = Annotated[
    int | None,
    typer.Option(metavar="COUNT", help="Micro-batches that an asynchronous schedule gathers for an update."),
]
EACH = "Each TIME, FACTOR and COUNT is one number for all ranks, or one for each, with commas between."


class AskedError(PipelineJobError):
    """An option's value cannot be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """The options for costs, as they were written."""

    forward: str
    backward_input: str
    backward_weight: str
    comm: str
    slowdown: str = "1"

    def model(self, num_ranks: int) -> CostModel:
        """Read them; all are in one unit, which is whichever the user has in mind.

        Raises AskedError.
        """
        forward = numbers("--forward", self.forward, num_ranks)
        input_gradient = numbers("--backward-input", self.backward_input, num_ranks)
        weight_gradient = numbers("--backward-weight", self.backward_weight, num_ranks)
        comm = numbers("--comm", self.comm, num_ranks)
        if not any(map(sum, zip(forward, input_gradient, weight_gradient, strict=True))):
            raise AskedError("--forward, --backward-input, --backward-weight: all are 0; let some work take time")
        return shares(
            forward_s=forward,
            input_s=input_gradient,
            weight_s=weight_gradient,
            link=Link(latency_s=comm[0]),
            links=_links(comm),
        )

    def slowdowns(self, num_ranks: int) -> tuple[float, ...] | None:
        """Return the factor of each rank; None where all are 1.

        Raises AskedError.
        """
        factors = numbers("--slowdown", self.slowdown, num_ranks, is_positive=True)
        return None if set(factors) == {1} else factors


def _links(comm: Sequence[float]) -> dict[tuple[int, int], Link]:
    """Return the links from ranks whose entry differs from the first one's; the sender's entry counts."""
    senders = {rank: Link(latency_s=seconds) for rank, seconds in enumerate(comm) if seconds != comm[0]}
    return {(rank, other): link for rank, link in senders.items() for other in range(len(comm)) if other != rank}


def setting(
    num_ranks: int,
    num_micro_batches: int,
    *,
    num_chunks: int | None,
    times: Times,
    memory_cap: str | None,
    update_interval: int | None,
    vertical_sync: bool = False,
) -> Setting:
    """Put together what schedules are made for.

    Raises AskedError for what cannot be.
    """
    for problem in _problems(num_ranks, num_micro_batches, num_chunks, update_interval):
        raise AskedError(problem)
    caps = None if memory_cap is None else numbers("--memory-cap", memory_cap, num_ranks, is_positive=True)
    return Setting(
        num_ranks=num_ranks,
        num_micro_batches=num_micro_batches,
        num_chunks=num_chunks,
        costs=times.model(num_ranks),
        activation_caps=caps,
        update_interval=update_interval,
        vertical_sync=vertical_sync,
    )


def _problems(
    num_ranks: int, num_micro_batches: int, num_chunks: int | None, update_interval: int | None
) -> Iterator[str]:
    if not 1 <= num_ranks <= _MAX_RANKS:
        yield f"-p {num_ranks}: a pipeline has 1 to {_MAX_RANKS} ranks"
    if num_micro_batches < 1:
        yield f"-m {num_micro_batches}: a step has at least 1 micro-batch"
    if num_chunks is not None and num_chunks < 1:
        yield f"-v {num_chunks}: a rank has at least 1 chunk; leave -v out for the schedule's usual number"
    if update_interval is not None and update_interval < 1:
        yield f"--update-interval {update_interval}: an update gathers at least 1 micro-batch"
    stages = num_ranks * (num_chunks or 1)
    if stages * num_micro_batches > MAX_WRITTEN:
        yield (
            f"-m {num_micro_batches}: on {stages} stages that is more than {MAX_WRITTEN:,} forwards, the most that a"
            f" schedule lists; use at most {MAX_WRITTEN // stages:,}, or fewer ranks"
        )


def numbers(option: str, written: str, num_ranks: int, *, is_positive: bool = False) -> tuple[float, ...]:
    """Read a number for all ranks, or one for each.

    Raises AskedError.
    """
    found = tuple(_number(option, word.strip(), is_positive=is_positive) for word in written.split(","))
    if len(found) == 1:
        return found * num_ranks
    if len(found) != num_ranks:
        raise AskedError(
            f"{option} {written}: {len(found)} numbers for {num_ranks} ranks; give one for all, or one for each"
        )
    return found


def _number(option: str, word: str, *, is_positive: bool) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise AskedError(
            f"{option}: {word!r} is no number; write one like 18.5, or one for each rank, as in 18.5,19,18"
        )
    if value < 0 or (is_positive and value == 0):
        rule = "must be above 0" if is_positive else "must not be negative; what costs nothing costs 0"
        raise AskedError(f"{option}: {word} {rule}")
    return value


def schedule_name(written: str) -> ScheduleName:
    """Find a schedule by its name, whatever its case and dashes.

    Raises AskedError, with the names that are near.
    """
    names = {_bare(name): name for name in (*FAMILIES, ScheduleName.CUSTOM)}
    found = names.get(_bare(written))
    if found is not None:
        return found
    near = [names[each].value for each in difflib.get_close_matches(_bare(written), names, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names.values())}"
    raise AskedError(f"{written!r} is no schedule; {hint} (pipelinejob schedule list says what each one is)")


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
