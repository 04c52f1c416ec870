"""Compiles layers before the first step: a step is played that leaves no trace, so that none that counts is longer.

It has the first step's data, and so every shape that a step has.
"""

import time

from pipelinejob.spec.training import Compile
from pipelinejob_trainer.base.errors import LayerError
from pipelinejob_trainer.data.dataset import Dataset
from pipelinejob_trainer.runtime.rank import Rank
from pipelinejob_trainer.runtime.recorder import Recorder
from pipelinejob_trainer.stage.layer_state import preserving_layer_state
from pipelinejob_trainer.stage.randomness import preserving_random_state
from pipelinejob_trainer.training.membership import Membership

_STEP = 1


def compile_layers(rank: Rank, membership: Membership, batches: Dataset | None) -> str | None:
    """Play a step's passes, if layers are compiled; return what is to be said. Every rank calls it.

    Raises UserError for a layer that cannot be compiled.
    """
    if rank.plan.training.compile is not Compile.LAYERS:
        return None
    began = time.perf_counter()
    runtime = rank.runtime(
        links=membership.link(rank.plan.schedule.micro_batch_sizes),
        sum_over=membership.sum_over,
        recorder=Recorder(replica=rank.replica, stage=rank.index, device=rank.device),
        batches=batches,
        update=lambda _: _forget_gradients(rank),
    )
    modules = [layer.module for layer in rank.part.layers]
    try:
        with preserving_random_state(rank.device), preserving_layer_state(modules):
            runtime.run_step(_STEP)
    except LayerError as error:
        error.within("compiling")
        raise
    _forget_gradients(rank)
    return f"layers compiled, in {time.perf_counter() - began:.0f} s"


def _forget_gradients(rank: Rank) -> None:
    sharded = {} if rank.shards is None else rank.shards.own
    for parameter in (*rank.part.named_parameters().values(), *sharded.values()):
        parameter.grad = None
