"""The trainer's own loop in threads of this process, and beside it a plain torch loop over the same text."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import StepRecord
from pipelinejob_trainer.base.seeds import mix
from pipelinejob_trainer.data.dataset import open_dataset
from pipelinejob_trainer.models.own import entrypoint
from pipelinejob_trainer.optimizers.rates import clip_factor, learning_rate
from pipelinejob_trainer.process.signals import StopRequest
from pipelinejob_trainer.process.stage_status import StageStatus
from pipelinejob_trainer.training import loop
from support.training import inprocess
from zoo.training import Meeting, _checkpoint, _config, told


class Trained:
    """What a run left behind."""

    def __init__(self, folder: Path, statuses: list[StageStatus], *, last: int) -> None:
        self.steps: list[StepRecord] = told(folder)
        self.checkpoint = _checkpoint(folder / "checkpoints", last)
        self.statuses = statuses

    def weight(self, name: str) -> torch.Tensor:
        return self.checkpoint[f"parameter/{name}"]


def train(plan: Plan, folder: Path, *, change: Callable[[loop.Preparation], None] = lambda _: None) -> Trained:
    """Train in threads, one a rank. Raises what the trainer raises."""
    meeting, ranks = Meeting(plan), plan.parallelism.pipeline
    prepared = [loop.Preparation(_config(folder, *divmod(rank, ranks), 1), plan) for rank in range(meeting.size)]
    for each in prepared:
        change(each)
    statuses = [StageStatus(plan, stage=rank % ranks, replica=rank // ranks, attempt=1) for rank in range(meeting.size)]

    def work(rank: int) -> None:
        never = StopRequest(grace_s=30, on_overdue=lambda: None)
        loop.run(prepared[rank], meeting.membership(rank), statuses[rank], never)

    inprocess.run_ranks(work, meeting.size, meeting.baton, on_error=meeting.leave)
    return Trained(folder, statuses, last=plan.training.steps)


def train_plainly(
    plan: Plan,
    optimizers_of: Callable[[dict[str, nn.Parameter]], list[torch.optim.Optimizer]],
    *,
    steps: Iterable[tuple[int, int]] | None = None,
    mask: Callable[[torch.Tensor], torch.Tensor] = lambda targets: targets,
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train the unsplit model; give losses, and weights by global name.

    `steps` are pairs: a step's number, by which the rate goes, and the one whose text it has. Each
    of the optimisers' groups may have a `scale` of the learning rate. `mask` says which targets
    count.
    """
    assert plan.model.entrypoint is not None
    training = plan.training
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(mix(training.seed, 0))
        made = entrypoint.load(plan.model.entrypoint, plan.model.arguments, expected=plan.model.num_layers or 0)
    modules = [make().module for _, make in made.parts]
    named = {f"layers.{i}.{name}": each for i, module in enumerate(modules) for name, each in module.named_parameters()}
    optimizers = optimizers_of(named)
    data = open_dataset(plan.data, schedule=plan.schedule, replicas=plan.parallelism.data, seed=training.seed)
    losses = []
    for number, text in steps if steps is not None else ((step, step) for step in range(1, training.steps + 1)):
        places = [(r, k) for r in range(plan.parallelism.data) for k in range(plan.schedule.micro_batches or 0)]
        read = [data.batch(text, *place) for place in places]
        stream, targets = torch.cat([each.tokens for each in read]), mask(torch.cat([each.targets for each in read]))
        for module in modules:
            stream = module(stream)
        loss = functional.cross_entropy(stream.flatten(0, 1), targets.flatten())
        loss.backward()
        trained = [each for each in named.values() if each.grad is not None]
        norm = float(torch.stack([each.grad.double().square().sum() for each in trained]).sum().sqrt())
        for each in trained:
            each.grad *= clip_factor(norm, training.clip_norm)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(training, number) * group.get("scale", 1.0)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, {name: each.detach() for name, each in named.items()}
