"""Three dimensions against one: jobs of pipeline x tensor x data ranks, and how close they come to a single process.

    PYTHONPATH=operator/src:trainer/src:tests python tests/dimensions.py     # all shapes and schedules, minutes
    PYTHONPATH=operator/src:trainer/src:tests python tests/dimensions.py full # shapes that shard so
    PYTHONPATH=operator/src:trainer/src:tests python tests/dimensions.py --expert --models experts # divided

What is compared are losses and gradient norms of all steps, the losses of two evaluations, and all
parameters after the last step.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from pipelinejob.contract.plan import Plan
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import Data, DecoderModel, Evaluation, GptModel, Model, ScheduleSpec, Sharding
from pipelinejob.spec.optimization import AdamWSettings
from pipelinejob.spec.workload import HuggingFaceModel
from pipelinejob_trainer.checkpoint import snapshot
from pipelinejob_trainer.checkpoint.folder import CheckpointFolder
from pipelinejob_trainer.checkpoint.pieces import Contents, metadata_of
from pipelinejob_trainer.checkpoint.snapshot import Snapshot
from pipelinejob_trainer.communication.expert_group import ExpertGroup
from pipelinejob_trainer.communication.tensor_group import TensorGroup
from pipelinejob_trainer.models.huggingface.files.folder import with_sizes
from pipelinejob_trainer.runtime.rank import Rank, build_rank
from pipelinejob_trainer.training.updates import Updates
from support.training.gangs import plan
from support.training.loops import Run, train

STEPS = 20
SAVED = 10
SEQUENCES = 16  # of a step's global batch
LOSS = 1e-6  # relative; sums in another order differ in their last bits
NORM = 5e-6  # relative; that of gradients, each of which differs so
# AdamW moves an element whose gradient is rounding alone as far as any other, one way or the
# other; a larger epsilon leaves such elements where they are, and the difference to the single
# process is that of sums.
ADAMW = AdamWSettings(epsilon=1e-4)
WEIGHT = 1e-6  # absolute; 20 steps at a rate of up to 0.001 move an element by 0.02 at most

GPT = Model(gpt=GptModel(num_layers=6, hidden_size=16, num_heads=2, vocabulary_size=257, tie_embeddings=True))
DECODER = Model(
    decoder=DecoderModel(
        num_layers=6,
        hidden_size=16,
        num_heads=4,
        num_key_value_heads=2,
        feed_forward_size=32,
        head_norms=True,
        attention_bias=True,
        sliding_window=8,
    )
)
EXPERTS = Model(
    decoder=DecoderModel.model_validate(
        {
            "num_layers": 6,
            "hidden_size": 16,
            "num_heads": 4,
            "num_key_value_heads": 2,
            "feed_forward_size": 32,
            "experts": {"num": 4, "per_token": 2},
        }
    )
)
_LAYERS = 8
_SIZES: dict[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": _LAYERS - 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
# A tied table of an odd number of tokens; norms of heads; experts; what is gathered between
# matrices.
FOLDERS: dict[str, dict[str, Any]] = {
    "llama": _SIZES | {"tie_word_embeddings": True, "attention_bias": True},
    "qwen3": _SIZES | {"head_dim": 8},
    "mixtral": _SIZES | {"num_local_experts": 4},
    "qwen3_moe": _SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8},
    "phi3": _SIZES,
}
WITH_EXPERTS = {"experts", "mixtral", "qwen3_moe"}
_TWO_STAGES_A_RANK = {ScheduleName.INTERLEAVED, ScheduleName.ZB_V, ScheduleName.DUALPIPE_V}


class Shape(NamedTuple):
    """Degrees, what replicas shard, whether ranks of a stage divide tokens, and what is computed again."""

    pipeline: int
    tensor: int = 1
    data: int = 1
    sharding: Sharding = Sharding.NONE
    sequence_parallel: bool = False
    recomputed: int = 0  # layers of each rank
    expert: int = 1  # replicas of a group that divides experts

    @property
    def ranks(self) -> int:
        return self.pipeline * self.tensor * self.data

    def __str__(self) -> str:
        tokens = " tokens" if self.sequence_parallel else ""
        again = f" {self.recomputed} again" if self.recomputed else ""
        experts = f" {self.expert} for experts" if self.expert > 1 else ""
        return f"{self.pipeline} x {self.tensor} x {self.data} {self.sharding}{tokens}{again}{experts}"


ONE = Shape(1)


def job(
    text: Path,
    model: Model,
    shape: Shape,
    schedule: ScheduleName = ScheduleName.ONE_F_ONE_B,
    *,
    steps: int = STEPS,
    clip_norm: float = 1.0,  # which the gradients here hardly reach
    layers: Sequence[int] = (),
) -> Plan:
    """Return a plan of this shape, with `layers` for each stage, else equally many; all train the same sequences."""
    stages = shape.pipeline * (2 if schedule in _TWO_STAGES_A_RANK else 1)
    layers = layers or [_LAYERS // stages] * stages
    chunks = {"virtual_stages": 2} if schedule is ScheduleName.INTERLEAVED else {}
    again = {"recompute_layers": (shape.recomputed,) * shape.pipeline} if shape.recomputed else {}
    needs_check = model.hugging_face is not None and max(shape.tensor, shape.expert) > 1  # as a manifest must say
    made = plan(
        *layers,
        ranks=shape.pipeline,
        replicas=shape.data,
        tensor=shape.tensor,
        model=model,
        data=Data(paths=(str(text),), sequence_length=16),
        schedule=ScheduleSpec(
            name=schedule, micro_batches=max(SEQUENCES // 2 // shape.data, 1), micro_batch_size=2, **chunks, **again
        ),
        training={
            "steps": steps,
            "preflight": needs_check,
            "learning_rate": 1e-3,
            "adam_w": ADAMW,
            "clip_norm": clip_norm,
        },
        checkpoint={"interval_steps": SAVED, "keep": 5},
        evaluation=Evaluation(interval_steps=SAVED),
    )
    divided = {"sharding": shape.sharding, "sequence_parallel": shape.sequence_parallel, "expert": shape.expert}
    degrees = made.parallelism.model_copy(update=divided)
    return made.model_copy(update={"parallelism": degrees})


def carried_over(written: Path, wanted: Plan, to: Path) -> Contents:
    """Restore all ranks of a plan from a checkpoint's folder, and save their states again, in another one."""
    for number, rank in enumerate(_ranks(wanted)):
        taken = _through(rank, written)
        save_file(dict(taken.tensors), to / f"{number}.safetensors", metadata=metadata_of(taken.pieces))
    return Contents(sorted(to.glob("*.safetensors")))


def _ranks(of: Plan) -> list[Rank]:
    degrees = of.parallelism
    return [
        build_rank(
            of,
            index=stage,
            replica=replica,
            device=torch.device("cpu"),
            tensor_group=TensorGroup(tensor, degrees.tensor),
            expert_group=ExpertGroup(replica % degrees.expert, degrees.expert),
        )
        for replica in range(degrees.data)
        for stage in range(degrees.pipeline)
        for tensor in range(degrees.tensor)
    ]


def _through(rank: Rank, folder: Path) -> Snapshot:
    """Restore a rank from a checkpoint, and take its state again."""
    updates = Updates(rank)
    checkpoint, sharded = CheckpointFolder(folder).open(SAVED), updates.sharded
    tensors = checkpoint.read(
        snapshot.wanted(rank.part),
        snapshot.may_hold(rank.part, updates.optimizer),
        snapshot.parts(rank.part, sharded=sharded),
    )
    assert snapshot.restore(rank.part, updates.optimizer, tensors, sharded=sharded) == ()
    return snapshot.take(rank.part, updates.optimizer, step=SAVED, is_mine=rank.owns, sharded=sharded)


def summed(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Give the cross entropy as a loss of one's own: a sum, and what it is over."""
    rows = logits.flatten(0, -2).log_softmax(-1)
    return -rows.gather(1, targets.flatten()[:, None]).sum(), targets.numel()


def folder_of(kind: str, root: Path, **changes: Any) -> Model:
    """Let transformers write a small random model of a family; it is not written twice."""
    from transformers import AutoConfig, AutoModelForCausalLM  # slow

    to = root / "-".join((kind, *changes))
    if not to.exists():
        torch.manual_seed(1)
        config = AutoConfig.for_model(kind, **(FOLDERS.get(kind, _SIZES) | changes))
        made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for each in made.parameters():
                each.add_(torch.randn_like(each), alpha=0.05)  # so that norms and biases count, too
        made.save_pretrained(to)
    return with_sizes(Model(hugging_face=HuggingFaceModel(path=str(to)), num_layers=_LAYERS))


class Difference(NamedTuple):
    """The largest of the losses, evaluations included, and of gradient norms, relative; of the parameters, absolute."""

    loss: float
    norm: float
    weight: float

    @property
    def told(self) -> str:
        return f"loss {self.loss:.1e} norm {self.norm:.1e} weights {self.weight:.1e}"

    @property
    def is_small(self) -> bool:
        return self.loss <= LOSS and self.norm <= NORM and self.weight <= WEIGHT


def difference(run: Run, alone: Run) -> Difference:
    """Compare a run with the single process's, step by step and name by name."""
    assert run.refused is None, run.refused
    assert len(run.losses) == len(alone.losses) > 0
    assert len(run.evaluations) == len(alone.evaluations) > 0
    last = len(run.losses)
    of_run, of_one = run.kept[last], alone.kept[last]
    assert of_run.keys() == of_one.keys()
    return Difference(
        _furthest(run.losses + run.evaluations, alone.losses + alone.evaluations),
        _furthest(run.norms, alone.norms),
        max(float((of_run[name] - of_one[name]).abs().max()) for name in of_one if name.startswith("parameter/")),
    )


def _furthest(found: Sequence[float], expected: Sequence[float]) -> float:
    return max(abs(one - other) / (other or 1.0) for one, other in zip(found, expected, strict=True))


def main() -> int:
    """Run the grid, or a part of it; print a line each, and return how many are too far from the single process."""
    asked = _asked()
    folder = Path(tempfile.mkdtemp(prefix="dimensions-"))
    text = folder / "text"
    text.write_bytes(bytes((i * i * 31 + i // 7) % 256 for i in range(20_000)))
    shapes = [Shape(*degrees) for degrees in product((1, 2), repeat=3)]
    sharded = [shape for shape in shapes if shape.data > 1]
    shapes += [Shape(*shape[:3], each) for each in (Sharding.OPTIMIZER, Sharding.FULL) for shape in sharded]
    shapes += [Shape(4)]
    shapes += [Shape(*shape[:4], sequence_parallel=True) for shape in shapes if shape.tensor > 1]
    shapes += [Shape(*degrees, 2, each, expert=2) for degrees in product((1, 2), repeat=2) for each in Sharding]
    shapes += [Shape(1, 2, 2, each, sequence_parallel=True, expert=2) for each in Sharding]
    shapes += [Shape(1, 1, 4, each, expert=expert) for each in Sharding for expert in (2, 4)]
    shapes = [shape for shape in shapes if shape.sharding in asked.sharding and (shape.expert > 1 or not asked.expert)]
    schedules = (
        ScheduleName.GPIPE,
        ScheduleName.ONE_F_ONE_B,
        ScheduleName.INTERLEAVED,
        ScheduleName.ZB_H1,
        ScheduleName.ZB_V,
        ScheduleName.DUALPIPE_V,
    )
    failures = 0
    built_in = (("gpt", GPT), ("decoder", DECODER), ("experts", EXPERTS))
    folders = ((kind, folder_of(kind, folder)) for kind in FOLDERS if kind in asked.models)
    for name, model in (*(each for each in built_in if each[0] in asked.models), *folders):
        (alone,) = train(job(text, model, ONE), folder=folder / name)
        for shape in shapes:
            if (shape.sequence_parallel and model.built_in is None) or (shape.expert > 1 and name not in WITH_EXPERTS):
                continue
            fitting = [each for each in schedules if shape.pipeline > 1 or each not in _TWO_STAGES_A_RANK]
            if shape.pipeline == 4:
                fitting = [each for each in fitting if each is not ScheduleName.GPIPE]
            began = time.monotonic()
            runs = train(*(job(text, model, shape, each) for each in fitting), folder=folder / f"{name} {shape}")
            for schedule, run in zip(fitting, runs, strict=True):
                found = difference(run, alone)
                failures += not found.is_small
                verdict = "ok" if found.is_small else "TOO FAR"
                line = f"{name:9} {shape!s:38} {schedule:15} {found.told} {verdict}"
                sys.stdout.write(line + "\n")
            sys.stdout.write(f"         {time.monotonic() - began:.0f} s\n")
            sys.stdout.flush()
    return failures


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "sharding", nargs="*", default=list(Sharding), help="shapes that shard so; all if none is given"
    )
    parser.add_argument("--models", nargs="+", default=["gpt", "decoder", "experts", *FOLDERS], help="these alone")
    parser.add_argument("--expert", action="store_true", help="shapes that divide experts alone")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
