"""The trainer's own loop, played by processes that have met already; and the same model, trained the plain way."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from functools import partial
from io import StringIO
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn import functional

from pipelinejob.contract.plan import Plan
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.base.seeds import mix
from pipelinejob_trainer.checkpoint.pieces import Contents
from pipelinejob_trainer.communication.gang import Gang
from pipelinejob_trainer.communication.process_groups import connect, process_groups
from pipelinejob_trainer.data.dataset import open_dataset
from pipelinejob_trainer.models.own import entrypoint
from pipelinejob_trainer.optimizers.rates import clip_factor, learning_rate
from pipelinejob_trainer.process.config import Address, Config
from pipelinejob_trainer.process.signals import StopRequest
from pipelinejob_trainer.process.stage_status import StageStatus, StepOutcome
from pipelinejob_trainer.runtime.reduction import sums_over_groups
from pipelinejob_trainer.training import loop
from pipelinejob_trainer.training.membership import Membership
from support.training.pipelines import run_processes

NOWHERE = Address(host="127.0.0.1", port=1)
Change = Callable[[loop.Preparation], None]


@dataclass(kw_only=True)
class Run:
    """What a run gave: each step's loss and norm, its evaluations, its checkpoints' tensors by step; or a refusal."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    kept: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    refused: tuple[str, str] | None = None


class _Losses(StageStatus):
    def __init__(self, plan: Plan, *, rank: int) -> None:
        super().__init__(plan, stage=rank, replica=0, attempt=1)
        self.run = Run()

    def add_step(self, outcome: StepOutcome) -> None:
        super().add_step(outcome)
        self.run.losses.append(outcome.loss)
        self.run.norms.append(outcome.gradient_norm)

    def add_evaluation(self, loss: float) -> None:
        super().add_evaluation(loss)
        self.run.evaluations.append(loss)


def train(*plans: Plan, folder: Path, changed: Change | None = None) -> list[Run]:
    """Train each of some plans of equally many ranks, in a folder of its own; what they read may be `changed` first."""
    degrees = plans[0].parallelism
    world = degrees.pipeline * degrees.data * degrees.tensor
    folders = [folder / f"plan-{number}" for number in range(len(plans))]
    ranks = run_processes(_rank, list(zip(plans, folders, strict=True)), changed, world=world)
    if all(isinstance(each, Exception) for each in ranks):
        raise ranks[0]
    found = [_together([of[number] for of in ranks if not isinstance(of, Exception)]) for number in range(len(plans))]
    for run, where in zip(found, folders, strict=True):
        run.kept = {int(step.name.removeprefix("step-")): _tensors(step) for step in sorted(where.glob("step-*"))}
    return found


def resume(*plans: Plan, step: int, folder: Path) -> list[Run]:
    """Train plans that were trained in `folder` on from a step's checkpoint, as if nothing after it had been."""
    for trained in sorted(folder.glob("plan-*")):
        for later in trained.glob("step-*"):
            if int(later.name.removeprefix("step-")) > step:
                shutil.rmtree(later)
    return train(*plans, folder=folder)


def train_plainly(plan: Plan) -> tuple[list[float], nn.Sequential]:
    """Train a model of modules in one process, with torch's own optimiser; give losses, and the layers."""
    assert plan.model.entrypoint is not None
    training, rows, replicas = plan.training, plan.schedule.micro_batch_sizes, plan.parallelism.data
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(mix(training.seed, 0))
        layers = entrypoint.load(plan.model.entrypoint, plan.model.arguments, expected=plan.model.num_layers or 0)
    model = nn.Sequential(*(make().module for _, make in layers.parts))
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [each for each in parameters if each.dim() > 1], "weight_decay": training.weight_decay},
            {"params": [each for each in parameters if each.dim() <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    data = open_dataset(
        plan.data, schedule=plan.schedule, replicas=replicas, seed=training.seed, evaluation=plan.evaluation
    )
    losses = []
    for step in range(1, training.steps + 1):
        optimizer.zero_grad()
        total = torch.zeros(())
        for replica in range(replicas):
            for k, count in enumerate(rows):
                tokens, targets, _ = data.batch(step, replica, k)
                loss = functional.cross_entropy(model(tokens).flatten(0, -2), targets.flatten())
                loss = loss * (count / (replicas * sum(rows)))
                loss.backward()
                total += loss.detach()
        norm = torch.stack([each.grad.norm() for each in parameters if each.grad is not None]).norm()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, step)
        for each in parameters:
            if each.grad is not None:
                each.grad *= clip_factor(float(norm), training.clip_norm)
        optimizer.step()
        losses.append(float(total))
    return losses, model


def _rank(rank: int, plans: Sequence[tuple[Plan, Path]], changed: Change | None) -> list[Run]:
    torch.set_num_threads(1)
    return [_train(rank, plan, folder, changed) for plan, folder in plans]


def _train(rank: int, plan: Plan, folder: Path, changed: Change | None = None) -> Run:
    place, tensor = divmod(rank, plan.parallelism.tensor)
    replica, stage = divmod(place, plan.parallelism.pipeline)
    status = _Losses(plan, rank=stage)
    try:
        _trained(plan, config(plan, stage=stage, replica=replica, tensor=tensor, folder=folder), status, changed)
    except UserError as error:
        return replace(status.run, refused=(error.reason, str(error)))
    distributed.barrier()
    return status.run


def _trained(plan: Plan, given: Config, status: StageStatus, changed: Change | None = None) -> loop.Preparation:
    with redirect_stdout(StringIO()):
        prepared = loop.Preparation(given, plan)
        if changed is not None:
            changed(prepared)
        loop.run(prepared, _membership(plan, prepared), status, StopRequest(grace_s=60, on_overdue=_never))
    return prepared


def tensor_rank(rank: int, plan: Plan, folder: Path) -> tuple[list[float], loop.Preparation]:
    """Train as one of the ranks that share all layers; give each step's loss, and what was trained."""
    torch.set_num_threads(1)
    status = _Losses(plan, rank=0)
    return status.run.losses, _trained(plan, config(plan, stage=0, replica=0, tensor=rank, folder=folder), status)


def ranks_of_plans(rank: int, plans: Sequence[Plan], folder: Path) -> tuple[str, str] | None:
    """Train as one of the ranks that have all layers, each by a plan of its own; give what it was refused for."""
    torch.set_num_threads(1)
    return _train(rank, plans[rank], folder).refused


def _membership(plan: Plan, prepared: loop.Preparation) -> Membership:
    layout, degrees, group = prepared.rank.layout, plan.parallelism, prepared.rank.tensor_group
    groups = process_groups(pipeline=degrees.pipeline, data=degrees.data, tensor=degrees.tensor, expert=degrees.expert)
    if groups.tensor is not None:
        group.meet(groups.tensor)
    if groups.expert is not None:
        prepared.rank.part.expert_group.meet(groups.expert)
    link = partial(
        connect,
        groups,
        routes=layout.schedule.routes,
        data=degrees.data,
        device=prepared.rank.device,
        tensor=degrees.tensor,
    )
    return Membership(
        gang=Gang(groups, num_stages=degrees.pipeline, tensor=degrees.tensor),
        link=lambda rows: link(rows=rows),
        sum_over=sums_over_groups(layout.all_shares(prepared.rank.part), group),
        rendezvous=NOWHERE,
        prefix="",
    )


def config(plan: Plan, *, stage: int, replica: int, tensor: int, folder: Path) -> Config:
    return Config(
        plan=folder / "plan.json",
        namespace=plan.namespace,
        job=plan.name,
        stage=stage,
        replica=replica,
        attempt=1,
        tensor=tensor,
        rendezvous=NOWHERE,
        metrics_port=0,
        checkpoints=folder,
        output=None,
        termination_log=None,
        grace_s=60.0,
    )


def _never() -> None:
    raise AssertionError


def _together(ranks: Sequence[Run]) -> Run:
    refused = next((each.refused for each in ranks if each.refused), None)
    return replace(ranks[0], refused=refused)


def _tensors(step: Path) -> dict[str, torch.Tensor]:
    """Return whole tensors; that each element is saved once is seen by who puts pieces together."""
    contents = Contents(sorted(step.glob("*.safetensors")))
    return {name: contents.tensor(name) for name in contents.names}


def replicated(rank: int, wanted: Plan, folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train; return losses, and the parameters that all ranks hold whole."""
    losses, prepared = tensor_rank(rank, wanted, folder)
    part = prepared.rank.part
    whole = {name: each.detach() for name, each in part.named_parameters().items() if name not in part.portions}
    return losses, whole
