"""What only a GPU shows of a stage: `check.sh` runs it, and says how it ended.

Each part is a question with an answer in figures. One that needs what this machine lacks is
skipped, by name; one that breaks does not keep the others from being asked, and figures are
written as they come. Without a GPU all but the skipped ones run in small on processors, by the
same lines.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from pipelinejob.base import names
from pipelinejob.contract.plan import Plan
from pipelinejob.costs.layers import analytic_profile
from pipelinejob.fabric.hardware import default
from pipelinejob.spec.job import Data, DecoderModel, Device, Experts, GptModel, Model, Precision, ScheduleSpec
from pipelinejob_trainer.models.losses.loss import cross_entropy
from pipelinejob_trainer.runtime.rank import build_rank
from support.training.gangs import FromScratch, Gang, plan

HAS_GPU = torch.cuda.is_available()
NUM_GPUS = torch.cuda.device_count() if HAS_GPU else 0
DEVICE = torch.device("cuda", 0) if HAS_GPU else torch.device("cpu")
OURS = Device.GPU if HAS_GPU else Device.CPU
SMALL = GptModel(num_layers=2, hidden_size=64, num_heads=4, vocabulary_size=512)
MIXTURE = DecoderModel(num_layers=2, hidden_size=64, num_heads=4, feed_forward_size=128, experts=Experts(num=4))
LARGE = GptModel(num_layers=12, hidden_size=2048, num_heads=16, vocabulary_size=51200) if HAS_GPU else SMALL
LENGTH, ROWS, ROUNDS = (2048, 2, 10) if HAS_GPU else (64, 2, 3)
STEPS = 10
OF_FP32, OF_BF16 = 1e-4, 2e-2  # relative, of losses, against a processor in fp32

Figures = dict[str, float]


class Skipped(Exception):  # noqa: N818 # no error: this machine has not what the part needs
    """Why a part is not run here."""


class Part(NamedTuple):
    """A question."""

    name: str
    answer: Callable[[Path], Figures]


def need(gpus: int) -> None:
    if gpus > NUM_GPUS:
        raise Skipped(f"needs {gpus} GPU{'s' * (gpus > 1)}, of which there are {NUM_GPUS}")


def job(
    folder: Path,
    *,
    device: Device,
    precision: Precision = Precision.FP32,
    tensor: int = 1,
    model: Model = Model(gpt=SMALL),  # noqa: B008 # a value
) -> Plan:
    text = folder / "text"
    text.write_bytes(bytes((i * i * 31 + i // 7) % 256 for i in range(50_000)))
    made = plan(
        SMALL.num_layers + 2,
        tensor=tensor,
        model=model,
        data=Data(paths=(str(text),), sequence_length=64),
        schedule=ScheduleSpec(micro_batches=4, micro_batch_size=2),
        training={"steps": STEPS, "precision": precision, "learning_rate": 1e-3},
    )
    return made.model_copy(update={"device": device})


def trained(folder: Path, wanted: Plan) -> Gang:
    gang = Gang(folder, wanted, machines=FromScratch())
    try:
        return gang.start().finish()
    finally:
        gang.kill()


def worst(of: Gang, other: Gang) -> float:
    return max(abs(one - two) / two for one, two in zip(of.losses(), other.losses(), strict=True))


def a_stage_trains(folder: Path) -> Figures:
    """Train one stage by the trainer's own process: streams, events, NCCL of one rank, checkpoints."""
    found = _against_a_processor(folder, Model(gpt=SMALL))
    timeline = json.loads((folder / "bf16" / names.TIMELINES_FOLDER / "job-r0-s0.json").read_text())
    kinds = {span["kind"] for stage in timeline["stages"] for span in stage["spans"]}
    assert {"forward", "backward_input"} <= kinds, kinds
    return found


def experts_train(folder: Path) -> Figures:
    """Train a stage whose blocks have experts: grouped products, in fp32 and bf16."""
    return _against_a_processor(folder, Model(decoder=MIXTURE))


def _against_a_processor(folder: Path, model: Model) -> Figures:
    """Train in fp32 and bf16; return the largest relative difference of a loss to those of a processor in fp32."""
    alone = trained(folder / "cpu", job(folder, device=Device.CPU, model=model))
    assert len(alone.losses()) == STEPS
    found = {
        precision.value: worst(
            trained(folder / precision.value, job(folder, device=OURS, precision=precision, model=model)), alone
        )
        for precision in (Precision.FP32, Precision.BF16)
    }
    assert found["fp32"] <= OF_FP32, found
    assert found["bf16"] <= OF_BF16, found
    return {f"loss_{name}": value for name, value in found.items()}


def tensor_ranks_share_a_stage(folder: Path) -> Figures:
    """Share a stage's layers over two GPUs of this machine, by NCCL."""
    if HAS_GPU:
        need(2)
    alone = trained(folder / "cpu", job(folder, device=Device.CPU))
    found = worst(trained(folder / "two", job(folder, device=OURS, tensor=2)), alone)
    assert found <= OF_FP32, found
    return {"loss_fp32": found}


def stages_share_a_gpu(folder: Path) -> Figures:
    """Play several stages on one GPU."""
    del folder
    raise Skipped("NCCL takes one rank a GPU, and borders between GPUs have no links over the host")


def memory_is_as_counted(folder: Path) -> Figures:
    """Hold the peak of one stage's step against what is counted."""
    need(1)
    del folder
    taken = _step()
    ratio = taken.peak / taken.counted
    assert 0.8 <= ratio <= 1.25, ratio
    return {"peak_gib": taken.peak / 2**30, "counted_gib": taken.counted / 2**30}


def a_stage_is_as_fast_as_a_plain_loop(folder: Path) -> Figures:
    """Compare a stage's passes with a plain loop: tokens a second, and the share of what the device attains."""
    del folder
    taken = _step()
    seconds = {"stage": taken.stage_s, "plain": taken.plain_s}
    figures = {f"{name}_tokens_per_s": taken.tokens / each for name, each in seconds.items()}
    kind = default().reckoned_as(OURS, torch.cuda.get_device_name().replace(" ", "-") if HAS_GPU else "")
    figures["stage_share_of_attained"] = taken.flops / taken.stage_s / kind.attained_flops(Precision.BF16)
    assert taken.stage_s <= 1.1 * taken.plain_s or not HAS_GPU, figures
    return figures


class _Taken(NamedTuple):
    tokens: int
    flops: float
    stage_s: float
    plain_s: float
    peak: int
    counted: int


@cache
def _step() -> _Taken:
    """Play one micro-batch's passes of a large stage and of a plain loop, in turn; both are asked of it."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = job(Path(folder), device=OURS, precision=Precision.BF16)
    model = Model(gpt=LARGE)
    layers = LARGE.num_layers + 2
    wanted = wanted.model_copy(
        update={
            "model": model,
            "data": wanted.data.model_copy(update={"sequence_length": LENGTH}),
            "cuts": ((0, layers),),
            "stages": (wanted.stages[0].model_copy(update={"chunks": ((0, layers),)}),),
        }
    )
    rank = build_rank(wanted, index=0, replica=0, device=DEVICE)
    (stage,) = rank.stages
    tokens = torch.randint(256, (ROWS, LENGTH), device=DEVICE)

    def through_stage() -> None:
        with stage.keeping_casts():
            stage.forward(0, tokens, tokens)
            stage.backward(0)

    def plainly() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            value = tokens
            for _, module in stage.layers:
                value = module(value)
            loss = cross_entropy(value, tokens)
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped

    through_stage()
    plainly()
    stage_s, plain_s, peak = [], [], 0
    for _ in range(ROUNDS):  # in turn, so that a slow moment falls on both
        if HAS_GPU:
            torch.cuda.reset_peak_memory_stats()
        stage_s.append(_timed(through_stage))
        peak = torch.cuda.max_memory_allocated() if HAS_GPU else 0
        plain_s.append(_timed(plainly))
    schedule = ScheduleSpec(micro_batches=1, micro_batch_size=ROWS)
    costs = analytic_profile(model, wanted.data, schedule, wanted.training, device=wanted.device).layers
    counted = sum(2 * each.parameter_bytes + each.cast_bytes + each.activation_bytes for each in costs)
    parameters = sum(each.parameter_bytes for each in costs) / 4
    return _Taken(ROWS * LENGTH, 6 * parameters * ROWS * LENGTH, median(stage_s), median(plain_s), peak, counted)


def _timed(work: Callable[[], None]) -> float:
    if HAS_GPU:
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if HAS_GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - began


PARTS = (
    Part("a stage trains", a_stage_trains),
    Part("experts train", experts_train),
    Part("a stage is as fast as a plain loop", a_stage_is_as_fast_as_a_plain_loop),
    Part("memory is as counted", memory_is_as_counted),
    Part("tensor ranks share a stage", tensor_ranks_share_a_stage),
    Part("several stages share a GPU", stages_share_a_gpu),
)


def main() -> int:
    """Ask all questions; return how many have a wrong answer, or none."""
    where = torch.cuda.get_device_name() if HAS_GPU else "processors (no GPU)"
    sys.stdout.write(f"on {where}, torch {torch.__version__}\n")
    found: dict[str, Figures | str] = {"device": where, "torch": torch.__version__}
    failures = 0
    for part in PARTS:
        began = time.perf_counter()
        found[part.name], is_wrong = _asked(part)
        failures += is_wrong
        sys.stdout.write(f"{part.name} ({time.perf_counter() - began:.0f} s): {found[part.name]}\n")
        sys.stdout.flush()
        if len(sys.argv) > 1:
            Path(sys.argv[1]).write_text(json.dumps(found, indent=2) + "\n")
    return failures


def _asked(part: Part) -> tuple[Figures | str, bool]:
    """Return a part's answer, and whether it is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return part.answer(Path(folder)), False
        except Skipped as why:
            return f"skipped: {why}", False
        except AssertionError as error:
            return f"WRONG: {error}", True
        except Exception:  # noqa: BLE001 # told, and the next part is asked
            return f"BROKEN: {traceback.format_exc()}", True


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
