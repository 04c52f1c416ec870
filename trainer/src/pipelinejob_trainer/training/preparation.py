"""What a rank does before its first step: build, and check what only all ranks together can tell."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipelinejob.base.errors import PipelineJobError
from pipelinejob.contract.plan import Plan
from pipelinejob.planning.dimensions import undividable, unrunnable
from pipelinejob.planning.experts import undividable_experts
from pipelinejob.spec.workload import Packing, packing_of
from pipelinejob_trainer.base.errors import LayerError, UserError
from pipelinejob_trainer.checkpoint.copies import Copies, places_of
from pipelinejob_trainer.checkpoint.folder import CheckpointFolder
from pipelinejob_trainer.communication.expert_group import ExpertGroup
from pipelinejob_trainer.communication.gang import Gang
from pipelinejob_trainer.communication.tensor_group import TensorGroup
from pipelinejob_trainer.data.dataset import Dataset, open_dataset, open_evaluation
from pipelinejob_trainer.data.position import Order, TextIdentity, agreed_text
from pipelinejob_trainer.models.first_layer import takes_positions
from pipelinejob_trainer.models.huggingface.files.folder import with_sizes
from pipelinejob_trainer.optimizers.groups import check_groups
from pipelinejob_trainer.process.config import Config
from pipelinejob_trainer.process.output import Output, say
from pipelinejob_trainer.runtime.rank import Rank, build_rank
from pipelinejob_trainer.runtime.recorder import Recorder
from pipelinejob_trainer.training.checks import preflight
from pipelinejob_trainer.training.checks.adapters import check_targets
from pipelinejob_trainer.training.membership import Membership, choose_device
from pipelinejob_trainer.training.not_finite import NotFinitePolicy
from pipelinejob_trainer.training.tracking import Trackers
from pipelinejob_trainer.training.warm_up import compile_layers


class Preparation:
    """What a rank builds before it meets the others; a user's errors show here."""

    def __init__(self, config: Config, plan: Plan) -> None:
        self.config = config
        self.plan = plan
        self.folder = CheckpointFolder(config.checkpoints)
        self.folder.prepare(who=config.process)
        if config.stage == config.replica == config.tensor == 0:  # who copies
            Copies(places_of(plan), self.folder, keep=plan.checkpoint.keep, warn=say).prepare()
        self.not_finite = NotFinitePolicy(plan.training)
        self.rank = self._built(plan)
        for remark in self.rank.part.remarks if config.stage == config.tensor == 0 else ():
            say(remark)
        self.output = Output(config, is_spokesman=self.rank.is_spokesman, num_steps=plan.training.steps)
        self.trackers = Trackers(plan.training.tracking, config, is_spokesman=self.rank.is_spokesman)
        self._open_text()

    def _built(self, plan: Plan) -> Rank:
        config = self.config
        degrees = plan.parallelism
        group = TensorGroup(config.tensor, degrees.tensor, divides_tokens=degrees.sequence_parallel)
        device = choose_device(plan, group.rank)
        experts = ExpertGroup(config.replica % degrees.expert, degrees.expert)
        for error in (*undividable(plan.model, group.size), *undividable_experts(plan.model, degrees)):
            raise UserError("NotDivided", str(error))
        for error in unrunnable(plan.model, plan.training, plan.schedule.name, degrees, plan.data):
            raise UserError("NotRunnable", str(error))
        return build_rank(
            plan,
            index=config.stage,
            replica=config.replica,
            device=device,
            tensor_group=group,
            expert_group=experts,
        )

    def _open_text(self) -> None:
        """Open the text where the rank needs it; let go of it where it does not."""
        self.batches = _open_data(self.plan, self.rank) if self.rank.needs_text else None
        _refuse_unseen_positions(self.plan, self.rank)
        self.evaluation_batches = _open_evaluation(self.plan, self.batches)
        self.text, self.evaluation_text = map(_identity, (self.batches, self.evaluation_batches))

    def recorder(self) -> Recorder:
        """Return what records this rank's time, as suits how many ranks there are for the processors."""
        return Recorder(
            replica=self.config.replica,
            stage=self.config.stage,
            device=self.rank.device,
            shares_processors=self.plan.shares_processors,
        )

    def go_over_to(self, plan: Plan) -> None:
        """Go on by another plan with the same text, order, and sequences in a step.

        Where it has other layers or another schedule for this rank, these are made anew, and still
        without a state. Raises PipelineJobError for a plan with other sequences, UserError where
        the layers cannot be made.
        """
        before, after = (each.schedule.sequences * each.parallelism.data for each in (self.plan, plan))
        if before != after:
            raise PipelineJobError(f"a step has {before} sequences, and by the plan that was told {after}")
        was_spokesman = self.rank.is_spokesman
        if self.rank.is_kept_by(plan):
            self.rank = self.rank.under(plan)
        else:
            del self.rank  # so that the old layers' memory is free for the new ones
            self.rank = self._built(plan)
            self.output.forget_timelines()
        self.plan = plan
        if self.rank.is_spokesman is not was_spokesman:
            self._speak()
        if self.rank.needs_text is not (self.batches is not None):
            self._open_text()
        self.batches, self.evaluation_batches = (
            None if each is None else each.shared_by(plan.parallelism.data, rows=plan.schedule.micro_batch_sizes)
            for each in (self.batches, self.evaluation_batches)
        )

    def _speak(self) -> None:
        """Begin to tell of the job's steps, or leave it to another rank."""
        is_spokesman, training = self.rank.is_spokesman, self.plan.training
        self.output = Output(self.config, is_spokesman=is_spokesman, num_steps=training.steps)
        self.trackers.close()
        self.trackers = Trackers(training.tracking, self.config, is_spokesman=is_spokesman)


def check(prepared: Preparation, membership: Membership) -> None:
    """Check what only all ranks together can tell. Raises UserError."""
    remark = check_targets(prepared.rank, membership.gang)
    if remark is not None and prepared.rank.is_spokesman:
        say(remark)
    check_groups(prepared.plan.training.groups, prepared.rank.part.named_parameters(), membership.gang)
    _refuse_untrainable(prepared.rank, membership.gang)


@contextmanager
def telling_errors(prepared: Preparation) -> Iterator[None]:
    """Turn a device's errors into the user's, who can mend them; close the trackers at the end."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            "OutOfMemory",
            f"stage {prepared.config.stage} ran out of GPU memory: {str(error).splitlines()[0]}; use more stages, a"
            " smaller spec.schedule.microBatchSize, spec.schedule.recompute, or a schedule that holds less",
        ) from error
    except torch.AcceleratorError as error:
        if "device-side assert" not in str(error):
            raise
        raise UserError(
            "DeviceAssert",
            f"stage {prepared.config.stage}: a kernel was given what it refuses, mostly an index beyond a table:"
            f" {str(error).splitlines()[0]}; to see the layer, use device: cpu, or set CUDA_LAUNCH_BLOCKING=1",
        ) from error
    finally:
        prepared.trackers.close()


def agreed_order(prepared: Preparation, gang: Gang) -> Order:
    """Return the order of the training text, which is the same on all ranks; every rank calls it.

    Raises UserError where the ranks see different texts.
    """
    plan = prepared.plan
    if plan.evaluation is not None:
        agreed_text(gang, prepared.evaluation_text, field="spec.evaluation")
    text = agreed_text(gang, prepared.text, field="spec.data")
    return Order(text=text, sequence_length=plan.data.sequence_length, seed=plan.training.seed)


def preflighted(rank: Rank, membership: Membership) -> str:
    """Check gradients of a shrunk model on the gang; return what is to be said of it."""
    try:
        return preflight.check(rank, membership)
    except LayerError as error:
        error.within("preflight")
        raise


def say_compiled(prepared: Preparation, membership: Membership) -> None:
    """Compile layers on the gang where the job asks for it, and say how long that took."""
    said = compile_layers(prepared.rank, membership, prepared.batches)
    if said is not None:
        say(said)


def _refuse_untrainable(rank: Rank, gang: Gang) -> None:
    """Refuse a model without trainable parameters; a single stage may have none."""
    parameters = rank.part.named_parameters().values()
    counts = [sum(each.requires_grad for each in parameters), len(parameters)]
    trainable, total = gang.sum(torch.tensor(counts, dtype=torch.float64))
    if trainable == 0:
        why = f"all {total:.0f} have requires_grad false" if total else "there are none"
        raise UserError(
            "NothingToTrain",
            f"spec.model: no parameter of any stage can be trained: {why}; give at least one layer a parameter that"
            " requires its gradient and that no group of spec.training.groups freezes",
        )


def _refuse_unseen_positions(plan: Plan, rank: Rank) -> None:
    """Refuse several documents in a sequence where nothing tells the model so."""
    if plan.data.tokens is None or packing_of(plan.model, plan.data) is not Packing.DOCUMENTS:
        return
    if any(layer.index == 0 and not takes_positions(layer.module) for layer in rank.part.layers):
        raise UserError(
            "PositionsNotTaken",
            "spec.data.packing: Documents keeps the documents of a sequence apart by their positions, but the first"
            " layer's forward has no parameter `positions`; give it one and use it, or use Concatenate or Padded",
        )


def _open_data(plan: Plan, rank: Rank) -> Dataset:
    return open_dataset(
        plan.data,
        schedule=plan.schedule,
        replicas=plan.parallelism.data,
        seed=plan.training.seed,
        model=with_sizes(plan.model),  # its vocabulary bounds the tokens
        vocabulary=rank.part.vocabulary,  # beyond it, ranks that divide it would find nothing, and not fail
        evaluation=plan.evaluation,
    )


def _open_evaluation(plan: Plan, batches: Dataset | None) -> Dataset | None:
    if plan.evaluation is None or batches is None:
        return None
    return open_evaluation(plan.data, plan.evaluation, training=batches)


def _identity(batches: Dataset | None) -> TextIdentity | None:
    return None if batches is None else batches.samples.identity()
