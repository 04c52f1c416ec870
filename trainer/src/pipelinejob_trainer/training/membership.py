"""torch.distributed in this process: choose the device, join the gang, leave it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined] # torch re-exports them silently

from pipelinejob.contract.plan import Plan
from pipelinejob.spec.job import Device
from pipelinejob_trainer.base.errors import PeerLostError, UserError
from pipelinejob_trainer.communication.gang import Gang, peer_errors
from pipelinejob_trainer.communication.links import Links
from pipelinejob_trainer.communication.liveness import Liveness, neighbours
from pipelinejob_trainer.communication.process_groups import connect, process_groups, rank_of, who
from pipelinejob_trainer.process.config import Address, Config, prepare_environment
from pipelinejob_trainer.runtime.rank import Rank
from pipelinejob_trainer.runtime.reduction import SumOver, sums_over_groups

# Pods of a gang start together, but one may have to pull its image first.
_RENDEZVOUS_TIMEOUT = timedelta(minutes=15)
# The longest that one rank may work while another waits for it: a step of a large model, a large
# checkpoint. Ranks that are gone are noticed long before, by their closed connections and by
# `liveness`.
_OPERATION_TIMEOUT = timedelta(minutes=30)
_ALL = "here/all"  # in the store, once all ranks are
_NAMED = 3  # of those who are missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """This rank as a member of a gang that has met.

    `link` makes links to the neighbours, given the sequences of each micro-batch; all ranks call
    it at the same point.
    """

    gang: Gang
    link: Callable[[Sequence[int]], Links]
    sum_over: SumOver
    rendezvous: Address
    prefix: str  # of this attempt's keys in the rendezvous store


def choose_device(plan: Plan, tensor: int = 0) -> torch.device:
    """Return the device that the plan asks for; `tensor` counts the ranks of a stage's container.

    Raises UserError when this machine has none.
    """
    if plan.device is Device.CPU:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "NoGpu", "spec.device: gpu, but this container sees none; request one in spec.template, or use device: cpu"
        )
    if torch.cuda.device_count() <= tensor:
        raise UserError(
            "NoGpu",
            f"spec.parallelism.tensor: {plan.parallelism.tensor} ranks of a stage need a GPU each, but this container"
            f" sees {torch.cuda.device_count()}; request {plan.parallelism.tensor} in spec.template",
        )
    device = torch.device("cuda", tensor)  # a stage's container sees its own GPUs only
    torch.cuda.set_device(device)
    return device


def join(config: Config, rank: Rank) -> Membership:
    """Wait until all ranks of this attempt are here, and form their process groups.

    Raises PeerLostError if one does not come, or goes away meanwhile.
    """
    group = rank.tensor_group
    place = rank_of(config.replica, config.stage, pipeline=rank.plan.parallelism.pipeline)
    number = place * group.size + group.rank
    prepare_environment(config.rendezvous)
    # Late ranks of an older attempt find no other rank under their prefix.
    prefix = f"{config.namespace}/{config.job}/attempt-{config.attempt}"
    with _meeting(config.rendezvous):
        store = PrefixStore(prefix, _store(config.rendezvous, rank=number, is_master=number == 0))
        _await_all(store, rank, number, at=config.rendezvous)
        return form(rank, store, number, rendezvous=config.rendezvous, prefix=prefix)


def form(rank: Rank, store: Store, number: int, *, rendezvous: Address, prefix: str) -> Membership:
    """Form the process groups over a store that all ranks of this attempt, and of this incarnation, share.

    Raises PeerLostError if one goes away meanwhile, RuntimeError if one does not come.
    """
    group = rank.tensor_group
    degrees = rank.plan.parallelism
    num_stages, num_replicas = degrees.pipeline, degrees.data
    size = num_stages * num_replicas * group.size
    backend = "gloo" if rank.device.type == "cpu" else "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, store=store, rank=number, world_size=size, timeout=_OPERATION_TIMEOUT)
    with peer_errors():
        groups = process_groups(pipeline=num_stages, data=num_replicas, tensor=group.size, expert=degrees.expert)
        sum_over = sums_over_groups(rank.layout.all_shares(rank.part), group)
    if groups.tensor is not None:
        group.meet(groups.tensor)
    if groups.expert is not None:
        rank.part.expert_group.meet(groups.expert)
    routes = rank.layout.schedule.routes
    return Membership(
        gang=Gang(groups, num_stages=num_stages, tensor=group.size),
        link=lambda rows: connect(
            groups, routes=routes, rows=rows, data=num_replicas, device=rank.device, tensor=group.size
        ),
        sum_over=sum_over,
        rendezvous=rendezvous,
        prefix=prefix,
    )


def watch_over(membership: Membership, *, on_lost: Callable[[int], None]) -> Liveness:
    """Start to watch for ranks that stop answering."""
    gang = membership.gang
    with peer_errors():
        store = _store(membership.rendezvous, rank=gang.rank, is_master=False)
        liveness = Liveness(
            PrefixStore(f"{membership.prefix}/alive", store),
            rank=gang.rank,
            neighbours=neighbours(
                gang.rank,
                num_stages=gang.num_stages,
                num_replicas=gang.size // gang.num_stages // gang.num_tensor,
                tensor=gang.num_tensor,
            ),
            on_lost=on_lost,
        )
    liveness.start()
    return liveness


def leave(membership: Membership, liveness: Liveness) -> None:
    """Leave the gang; every rank calls it."""
    liveness.close()
    membership.gang.barrier()  # no rank watches any more, so rank 0 may end its store
    distributed.destroy_process_group()


def _store(rendezvous: Address, *, rank: int, is_master: bool) -> TCPStore:
    # Rank 0 serves the store and needs no DNS to find itself.
    host = "127.0.0.1" if rank == 0 else rendezvous.host
    return TCPStore(host, rendezvous.port, is_master=is_master, timeout=_RENDEZVOUS_TIMEOUT, wait_for_workers=False)


def _await_all(store: Store, rank: Rank, number: int, *, at: Address) -> None:
    """Return when all ranks are here. Raises PeerLostError that names some who did not come."""
    degrees = rank.plan.parallelism
    size = degrees.pipeline * degrees.data * degrees.tensor
    store.set(_here(number), "")
    if store.add("here", 1) == size:
        store.set(_ALL, "")
    try:
        store.wait([_ALL], _RENDEZVOUS_TIMEOUT)
    except RuntimeError as error:
        missing = [each for each in range(size) if not store.check([_here(each)])]
        named = ", ".join(who(each, pipeline=degrees.pipeline, tensor=degrees.tensor) for each in missing[:_NAMED])
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise PeerLostError(
            f"{named}{more} did not come to {at} within {_RENDEZVOUS_TIMEOUT.total_seconds():g} s"
        ) from error


def _here(rank: int) -> str:
    return f"here/{rank}"


@contextmanager
def _meeting(rendezvous: Address) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLostError(
            f"not all ranks met at {rendezvous} within {_RENDEZVOUS_TIMEOUT.total_seconds():g} s:"
            f" {str(error).splitlines()[0]}"
        ) from error
