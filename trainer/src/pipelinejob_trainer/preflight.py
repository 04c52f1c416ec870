"""One step of a shrunk model, played by the real gang over the real links, against one process that splits nothing.

The job's own schedule is played, list and all, with the job's own number of layers on each stage. A built-in model is
shrunk to a few hidden units and short sequences. A user's own layers have the sizes they have: their micro-batches
shrink, to one or two short sequences, and the whole model must fit into each process once. Every rank then runs the
same micro-batches through all layers, one after the other, and compares the gradients of what it holds. An asynchronous
schedule's weights stay as they are meanwhile, so that all versions are equal; what is compared are its gradients,
summed over the updates.

Nothing of it is left: weights, buffers and random state are as before.
"""

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn import functional

from pipelinejob.plan import Plan
from pipelinejob.schedule_spec import ScheduleSpec
from pipelinejob.schedules.actions import GIVES_GRADIENT, ActionKind
from pipelinejob.spec import GptModel, Precision
from pipelinejob_trainer.data import mix
from pipelinejob_trainer.errors import UserError
from pipelinejob_trainer.gang import Gang
from pipelinejob_trainer.models import build_part, num_layers
from pipelinejob_trainer.process import Membership
from pipelinejob_trainer.randomness import reseeder, seed_of_pass
from pipelinejob_trainer.rank import Rank, put_together
from pipelinejob_trainer.recorder import Recorder

# Sums in another order differ in their last bits; a lost or doubled micro-batch, or one half of a pass, by percents.
_BOUNDS = {Precision.FP32: 1e-3, Precision.BF16: 3e-2}
_NOISE = 1e-3  # of the largest gradient: what is smaller than this may be rounding alone, and is not divided by
_SEQUENCE_LENGTH = 16
_ROWS = 2
_STEP = 1

Gradients = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A parameter whose gradient differs most, and by how much of its largest entry."""

    error: float
    name: str
    rank: int = 0


def check(rank: Rank, membership: Membership) -> str:
    """Compare one step's gradients of the shrunk model; give a sentence that says how close they are.

    All ranks call it, at the same point. Raises UserError, on all of them, when a gradient is wrong.
    """
    with _undisturbed(rank):
        small = put_together(shrunk(rank.plan), index=rank.index, replica=rank.replica, device=rank.device)
        batches = _Noise(small.plan)
        played = _played(small, membership, batches)
        plain = _plain(small, batches)
    worst = _worst_of_all(membership.gang, _worst(played, plain))
    bound = _BOUNDS[rank.plan.training.precision]
    if not worst.error <= bound:  # nor is a NaN
        replica, stage = divmod(worst.rank, rank.plan.parallelism.pipeline)
        raise UserError(
            "PreflightFailed",
            f"preflight: stage {stage} of replica {replica}: the gradient of {worst.name} differs by {worst.error:.1e}"
            f" of its largest entry from a single process's, and may by {bound:g}: {rank.plan.schedule.name} does not"
            " train this model as written; look for layers that share state or draw random numbers beside torch's, try"
            " spec.schedule.name 1F1B, and report it if your layers are not the reason",
        )
    how = f"largest relative error {worst.error:.1e}, of {worst.name}" if worst.error else "bit for bit"
    return f"preflight: one step's gradients agree with a single process's ({how})"


def shrunk(plan: Plan) -> Plan:
    """Make a plan small that it may be run once in passing; schedule, layers and stages stay."""
    model, data = plan.model, plan.data
    if model.gpt is not None:
        model = model.model_copy(update={"gpt": _small_gpt(model.gpt)})
    return plan.model_copy(
        update={
            "model": model,
            "data": data.model_copy(update={"sequence_length": min(_SEQUENCE_LENGTH, data.sequence_length)}),
            "schedule": _small_schedule(plan.schedule),
        }
    )


def _small_gpt(gpt: GptModel) -> GptModel:
    sizes = {"hidden_size": 16, "num_heads": 2, "feed_forward_size": 32, "vocabulary_size": 256}
    return gpt.model_copy(update=sizes)


def _small_schedule(schedule: ScheduleSpec) -> ScheduleSpec:
    """Take few sequences for a micro-batch; where the last has fewer than the others, it has still."""
    size = min(_ROWS, schedule.micro_batch_size)
    full = size * schedule.micro_batches
    is_uneven = schedule.sequences < schedule.micro_batch_size * schedule.micro_batches
    return schedule.model_copy(update={"micro_batch_size": size, "batch_size": full - 1 if is_uneven else None})


class _Noise:
    """Batches of random bytes: every rank needs them, and text is only where first and last stages are."""

    def __init__(self, plan: Plan) -> None:
        self._seed = plan.training.seed
        self._rows = plan.schedule.micro_batch_sizes
        self._length = plan.data.sequence_length

    def batch(self, step: int, replica: int, micro_batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        dice = torch.Generator().manual_seed(mix(self._seed, step, replica, micro_batch))
        tokens = torch.randint(256, (self._rows[micro_batch], self._length + 1), generator=dice)
        return tokens[:, :-1], tokens[:, 1:]


def _played(small: Rank, membership: Membership, batches: _Noise) -> Gradients:
    """Play the step as the job will be played."""
    parameters = small.part.named_parameters()
    sums = {name: torch.zeros_like(each) for name, each in parameters.items()}

    def gather(share: float) -> None:
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                sums[name] += parameter.grad * share
                parameter.grad = None

    shares = _shares_of_updates(small)
    runtime = small.runtime(
        links=membership.link(small.plan.schedule.micro_batch_sizes),
        sum_over=membership.sum_over,
        recorder=Recorder(replica=small.replica, stage=small.index, device=small.device),
        batches=batches,
        update=lambda number: gather(shares[number - 1]),
    )
    runtime.run_step(_STEP)
    gather(1.0)  # nothing is left where updates within the step have gathered all
    return sums


def _shares_of_updates(small: Rank) -> list[float]:
    """Give, for each update within the step, which share of the step's micro-batches its mean gradient is of."""
    gathered, shares = 0, []
    for action in small.layout.schedule.ranks[small.index]:
        if action.kind is ActionKind.UPDATE:
            shares.append(gathered / small.layout.schedule.num_micro_batches)
            gathered = 0
        gathered += action.kind in GIVES_GRADIENT
    return shares


def _plain(small: Rank, batches: _Noise) -> Gradients:
    """Train the whole model the plain way: no stage, no runtime, one micro-batch after the other."""
    plan = small.plan
    whole = build_part(plan.model, plan.data, stretches=[(0, num_layers(plan.model))], seed=plan.training.seed)
    for layer in whole.layers:
        layer.module.to(small.device).float().train()
    reseed = reseeder(small.device)
    count, replicas = plan.schedule.micro_batches, plan.parallelism.data
    for sample in range(count * replicas):
        replica, micro_batch = divmod(sample, count)
        stream, targets = (each.to(small.device) for each in batches.batch(_STEP, replica, micro_batch))
        with torch.autocast(small.device.type, torch.bfloat16, enabled=plan.training.precision is Precision.BF16):
            for layer in whole.layers:
                reseed(seed_of_pass(plan.training.seed, _STEP, sample), layer.index)
                stream = layer.module(stream)
        loss = functional.cross_entropy(stream.flatten(0, -2).float(), targets.flatten())
        weighted: torch.Tensor = loss * (len(targets) / (plan.schedule.sequences * replicas))
        weighted.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    parameters = whole.named_parameters()
    return {name: _gradient(parameters[name]) for name in small.part.named_parameters()}


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _worst(played: Gradients, plain: Gradients) -> Finding:
    """Find the gradient that differs most, relative to its largest entry."""
    sizes = {name: float(expected.abs().max()) for name, expected in plain.items() if expected.numel()}
    least = _NOISE * max(sizes.values(), default=0.0)
    errors = {
        name: float((played[name] - plain[name]).abs().max()) / max(size, least) if least else 0.0
        for name, size in sizes.items()
    }
    name = max(errors, key=lambda each: (errors[each] != errors[each], errors[each]), default="")  # a NaN is the worst
    return Finding(error=errors.get(name, 0.0), name=name)


_NAME_BYTES = 248


def _worst_of_all(gang: Gang, mine: Finding) -> Finding:
    content = struct.pack(f"d{_NAME_BYTES}s", mine.error, mine.name.encode()[:_NAME_BYTES])
    findings = []
    for rank, row in enumerate(gang.gather(torch.tensor(list(content), dtype=torch.uint8))):
        error, name = struct.unpack(f"d{_NAME_BYTES}s", bytes(row.tolist()))
        findings.append(Finding(error=error, name=name.rstrip(b"\0").decode(errors="replace"), rank=rank))
    return max(findings, key=lambda each: (each.error != each.error, each.error))


@contextmanager
def _undisturbed(rank: Rank) -> Iterator[None]:
    """Leave what is trained later as it is, even if a user's function gives the same layers each time."""
    buffers = {name: buffer.clone() for name, buffer in rank.part.named_buffers().items()}
    devices = [rank.device] if rank.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
    for name, buffer in rank.part.named_buffers().items():
        buffer.copy_(buffers[name])
    for parameter in rank.part.named_parameters().values():
        parameter.grad = None
