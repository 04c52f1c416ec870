"""One step of a shrunk model, played by the real gang, compared with an unsplit model.

It plays the job's own schedule, with the job's number of layers on each stage. A built-in model is
shrunk to a few hidden units and short sequences, and so is a folder's, which gets random weights.
A user's own layers keep their sizes: their micro-batches shrink to one or two short sequences, and
the whole model must fit into each process once. Every rank then runs the same micro-batches
through all layers, one after the other, and compares the gradients of its own parameters. An
asynchronous schedule's weights do not change meanwhile, so all versions are equal; its gradients
are compared, summed over the updates.

Afterwards weights, buffers and random state are as before.
"""

import struct
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pipelinejob.contract.plan import Plan
from pipelinejob.schedules.actions import GIVES_GRADIENT, ActionKind
from pipelinejob.spec.job import Precision, Sharding
from pipelinejob.spec.schedules.schedule import ScheduleSpec
from pipelinejob.spec.workload import Packing, packing_of
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.base.seeds import mix
from pipelinejob_trainer.base.user_code import through_layer
from pipelinejob_trainer.communication.gang import Gang
from pipelinejob_trainer.data.micro_batch import MicroBatch
from pipelinejob_trainer.models.first_layer import extra_inputs
from pipelinejob_trainer.models.huggingface.layers import Narrow
from pipelinejob_trainer.models.lora import stirred
from pipelinejob_trainer.models.losses.auxiliary_loss import Gathering, with_terms
from pipelinejob_trainer.models.losses.counted_loss import loss_of
from pipelinejob_trainer.models.losses.loss import Loss, load_loss, token_cross_entropy
from pipelinejob_trainer.models.part import Part, build_part, num_layers
from pipelinejob_trainer.optimizers.groups import freeze
from pipelinejob_trainer.runtime.rank import Rank, build_rank
from pipelinejob_trainer.runtime.recorder import Recorder
from pipelinejob_trainer.runtime.tasks import loss_weights, update_groups
from pipelinejob_trainer.stage.layer_state import LayerState, preserving_layer_state
from pipelinejob_trainer.stage.randomness import preserving_random_state, reseeder, seed_of_pass
from pipelinejob_trainer.training.membership import Membership

# Sums in another order differ in their last bits; a lost or doubled micro-batch, or one half of a
# pass, by percents.
_BOUNDS = {Precision.FP32: 1e-3, Precision.BF16: 3e-2}
_NOISE = 1e-3  # of the largest gradient: what is smaller than this may be rounding alone, and is not divided by
_SEQUENCE_LENGTH = 16
_ROWS = 2
_BYTES = 256  # tokens that a model of any text has
_FEW = 32  # tokens that a folder's model has when it is narrow
_STEP = 1

Gradients = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The parameter whose gradient differs most, and by what part of its largest entry."""

    error: float
    name: str
    rank: int = 0


def check(rank: Rank, membership: Membership) -> str:
    """Compare one step's gradients of the shrunk model; return a sentence on how close they are.

    All ranks call it, at the same point. Raises UserError, on all of them, when a gradient is
    wrong.
    """
    with preserving_random_state(rank.device):
        small = build_rank(
            shrunk(rank.plan),
            index=rank.index,
            replica=rank.replica,
            device=rank.device,
            tensor_group=rank.tensor_group,
            expert_group=rank.part.expert_group,
            narrow=_narrow(rank),
        )
        batches = _Noise(small.plan)
        with _without_a_trace(small.part), _stirred(small.part, small.plan):
            played = _played(small, membership, batches)
        plain = _plain(small, batches)
    worst = _worst_of_all(membership.gang, _worst(played, plain))
    bound = _BOUNDS[rank.plan.training.precision]
    if not worst.error <= bound:  # nor is a NaN
        replica, stage = divmod(worst.rank // rank.tensor_group.size, rank.plan.parallelism.pipeline)
        raise UserError(
            "PreflightFailed",
            f"preflight: stage {stage} of replica {replica}: the gradient of {worst.name} differs by {worst.error:.1e}"
            f" of its largest entry from a single process's, and may by {bound:g}: {rank.plan.schedule.name} does not"
            " train this model as written; look for layers that share state or draw random numbers that no seed sets,"
            " try spec.schedule.name 1F1B, and report it if your layers are not the reason",
        )
    how = f"largest relative error {worst.error:.1e}, of {worst.name}" if worst.error else "bit for bit"
    return f"preflight: one step's gradients agree with a single process's ({how})"


def shrunk(plan: Plan) -> Plan:
    """Return a small version of a plan; schedule, layers and stages stay."""
    data, tensor = plan.data, plan.parallelism.tensor
    length = min(_SEQUENCE_LENGTH, data.sequence_length)
    if plan.parallelism.sequence_parallel:  # as a job's, it has equally many tokens for each
        length = max(tensor, length - length % tensor)
    return plan.model_copy(
        update={
            "model": plan.model.shrunk(tensor, plan.parallelism.expert),
            "parallelism": plan.parallelism.model_copy(update={"sharding": Sharding.NONE}),  # for whole gradients
            "data": data.model_copy(update={"sequence_length": length}),
            "schedule": _small_schedule(plan.schedule),
        }
    )


def _small_schedule(schedule: ScheduleSpec) -> ScheduleSpec:
    """Shrink micro-batches; where the last has fewer sequences than the others, it still does."""
    size = min(_ROWS, schedule.micro_batch_size)
    full = size * schedule.micro_batches
    is_uneven = schedule.sequences < schedule.micro_batch_size * schedule.micro_batches
    return schedule.model_copy(update={"micro_batch_size": size, "batch_size": full - 1 if is_uneven else None})


class _Noise:
    """Batches of random tokens: every rank needs them, but only first and last stages have text.

    Rows have two documents, and positions, where the job's may have several.
    """

    def __init__(self, plan: Plan) -> None:
        self._seed = plan.training.seed
        self._rows = plan.schedule.micro_batch_sizes
        self._length = plan.data.sequence_length
        self._vocabulary = _BYTES if plan.model.hugging_face is None else _FEW
        places = torch.arange(self._length)
        packs = bool(plan.data.tokens) and packing_of(plan.model, plan.data) is Packing.DOCUMENTS
        self._positions = places % (self._length // 2 + 1) if packs else None

    def batch(self, step: int, replica: int, micro_batch: int) -> MicroBatch:
        dice = torch.Generator().manual_seed(mix(self._seed, step, replica, micro_batch))
        rows = self._rows[micro_batch]
        tokens = torch.randint(self._vocabulary, (rows, self._length + 1), generator=dice)
        positions = None if self._positions is None else self._positions.expand(rows, -1)
        return MicroBatch(tokens[:, :-1], tokens[:, 1:], positions)


def _played(small: Rank, membership: Membership, batches: _Noise) -> Gradients:
    """Play one step as the job will."""
    parameters = small.part.named_parameters()
    sums = {name: torch.zeros_like(each) for name, each in parameters.items()}

    shares = _shares_of_updates(small)
    runtime = small.runtime(
        links=membership.link(small.plan.schedule.micro_batch_sizes),
        sum_over=membership.sum_over,
        recorder=Recorder(replica=small.replica, stage=small.index, device=small.device),
        batches=batches,
        update=lambda number: _gather(parameters, sums, shares[number - 1]),
    )
    runtime.run_step(_STEP)
    _gather(parameters, sums)  # nothing is left where updates within the step have taken all
    return sums


def _shares_of_updates(small: Rank) -> list[float]:
    """Return, for each update within the step, its fraction of the step's micro-batches."""
    count, shares = 0, []
    for action in small.layout.schedule.ranks[small.index]:
        if action.kind is ActionKind.UPDATE:
            shares.append(count / small.layout.schedule.num_micro_batches)
            count = 0
        count += action.kind in GIVES_GRADIENT
    return shares


def _narrow(rank: Rank) -> Narrow:
    return Narrow(tensor=rank.tensor_group.size, expert=rank.part.expert_group.size)


def _plain(small: Rank, batches: _Noise) -> Gradients:
    """Train the whole model without stages or runtime, one micro-batch after the other.

    Each copy that the job will have starts with the same buffers and adds up its own gradients,
    update by update, since layers may treat gradients by their size.
    """
    plan = small.plan
    stretches, training = [(0, num_layers(plan.model))], plan.training
    narrow = _narrow(small)
    whole = build_part(
        plan.model, plan.data, stretches=stretches, seed=training.seed, lora=training.lora, narrow=narrow
    )
    whole.settle(small.device)
    of_all = whole.named_parameters()
    freeze(of_all, plan.training.groups)
    parameters = {name: of_all[name] for name in small.part.named_parameters()}
    sums = {name: torch.zeros_like(each) for name, each in parameters.items()}
    state = LayerState(layer.module for layer in whole.layers)
    schedule, rows = small.layout.schedule, plan.schedule.micro_batch_sizes
    loss = load_loss(plan.training, small.device)
    weights_of = loss_weights(schedule, rows, replicas=plan.parallelism.data)
    with _without_a_trace(whole), _stirred(whole, plan):
        for updates in _samples_of_copies(small):
            with state.on(state.copied()):
                for samples in updates:
                    weights = [weights_of[sample % plan.schedule.micro_batches] for sample in samples]
                    for sample, weight in zip(samples, weights, strict=True):
                        _pass(small, whole, sample, batches, loss, loss_weight=float(weight.gradient))
                    _gather(parameters, sums, float(weights[0].step / weights[0].gradient))
    return {name: small.part.own(name, each) for name, each in sums.items()}


def _samples_of_copies(small: Rank) -> Iterator[list[list[int]]]:
    """Return the micro-batches of each copy of the model, update by update."""
    schedule = small.layout.schedule
    for replica in range(small.plan.parallelism.data):
        for route in range(len(schedule.routes)):
            groups = dict.fromkeys(update_groups(schedule).values())
            mine = ([k for k in group if schedule.route_of[k] == route] for group in groups)
            yield [[replica * schedule.num_micro_batches + k for k in group] for group in mine if group]


def _pass(small: Rank, whole: Part, sample: int, batches: _Noise, loss: Loss, *, loss_weight: float) -> None:
    plan, device = small.plan, small.device
    replica, micro_batch = divmod(sample, plan.schedule.micro_batches)
    read = batches.batch(_STEP, replica, micro_batch)
    stream: Any = read.tokens.to(device, copy=True)
    targets = read.targets.to(device, copy=True)
    positions = None if read.positions is None else read.positions.to(device, copy=True)
    reseed, seed = reseeder(device), seed_of_pass(plan.training.seed, _STEP, sample)
    is_bf16 = plan.training.precision is Precision.BF16
    with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16), Gathering() as terms:
        for layer in whole.layers:
            reseed(seed, layer.index)
            stream = through_layer(
                layer.index, layer.module, stream, extra_inputs(layer.index, layer.module, positions)
            )
        if loss is not token_cross_entropy:
            reseed(seed, num_layers(plan.model))
        is_alone = small.layout.schedule.is_asynchronous
        value = with_terms(loss_of(loss(stream, targets), targets, is_alone=is_alone), terms, targets.numel())
    weighted: torch.Tensor = value * loss_weight
    weighted.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped


def _gather(parameters: Mapping[str, torch.Tensor], sums: Mapping[str, torch.Tensor], share: float = 1.0) -> None:
    """Add gradients to sums, and clear them."""
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            sums[name].add_(parameter.grad * share)
            parameter.grad = None


def _worst(played: Gradients, plain: Gradients) -> Finding:
    """Find the gradient that differs most, relative to its largest entry."""
    sizes = {name: float(expected.abs().max()) for name, expected in plain.items() if expected.numel()}
    least = _NOISE * max(sizes.values(), default=0.0)
    errors = {
        name: float((played[name] - plain[name]).abs().max()) / (max(size, least) or 1.0) if least else 0.0
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


def _stirred(part: Part, plan: Plan) -> AbstractContextManager[None]:
    """Give adapters values under which all of them have gradients."""
    return stirred(((layer.index, layer.module) for layer in part.layers), plan.training.seed)


@contextmanager
def _without_a_trace(part: Part) -> Iterator[None]:
    """Restore layers afterwards: a user's function may return the ones that are trained later."""
    with preserving_layer_state(layer.module for layer in part.layers):
        yield
    for parameter in part.named_parameters().values():
        parameter.grad = None
