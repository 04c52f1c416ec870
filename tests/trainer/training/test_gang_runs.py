"""Real trainer processes over gloo: the same twice, stopped and resumed, bereft of a peer, watched from outside."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipelinejob.base import names
from pipelinejob.base.timeline import Timeline
from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import ExitCode, Phase
from pipelinejob.schedules.causes import WaitCause
from pipelinejob.spec.job import Data, Evaluation, GptModel, Model, ScheduleName, ScheduleSpec
from pipelinejob_trainer.checkpoint.folder import CheckpointFolder
from pipelinejob_trainer.data.dataset import open_dataset, open_evaluation
from pipelinejob_trainer.models.part import build_part
from pipelinejob_trainer.sample import load_newest
from support.training.gangs import FromScratch, Gang, plan

TESTS = Path(__file__).parents[2]
STEPS = 80
TIED = Model(gpt=GptModel(num_layers=2, hidden_size=16, num_heads=2, dropout=0.1, tie_embeddings=True))
# Dropout in every layer: random state that a resumed run must find again.
MODEL = Model(entrypoint="layers.user_models:dropout_in_each_layer", num_layers=4)

pytestmark = pytest.mark.xdist_group("gangs")  # one gang at a time is load enough


def long_plan(*layers: int, steps: int = STEPS) -> Plan:
    return plan(*layers, model=MODEL, training={"steps": steps}, checkpoint={"interval_steps": 10, "keep": 3})


@pytest.fixture(scope="module")
def undisturbed(make: Callable[[Plan], Gang]) -> Gang:
    return make(long_plan(1, 1, 1, 1)).finish()


def state(gang: Gang, step: int = STEPS) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, over all its stages."""
    return {name: tensor for shard in shards_of(gang, step) for name, tensor in shard.items()}


def shards_of(gang: Gang, step: int) -> list[dict[str, torch.Tensor]]:
    folder = gang.checkpoints / f"step-{step:08d}"
    return [load_file(shard) for shard in sorted(folder.glob("*.safetensors"))]


def assert_same_end(gang: Gang, other: Gang) -> None:
    assert gang.losses() == other.losses()
    mine, others = state(gang), state(other)
    assert mine.keys() == others.keys()
    assert all(torch.equal(mine[name], others[name]) for name in mine)


def test_two_runs_with_one_seed_are_bit_identical_forked_or_from_scratch(undisturbed: Gang) -> None:
    folder = undisturbed.folder.with_name(f"{undisturbed.folder.name}-again")
    again = Gang(folder, undisturbed.plan, environment=undisturbed.environment, machines=FromScratch())
    again.start().finish()

    assert len(again.losses()) == STEPS
    assert_same_end(again, undisturbed)


def test_stopped_and_resumed_equals_never_stopped(undisturbed: Gang, make: Callable[[Plan], Gang]) -> None:
    gang = make(long_plan(1, 1, 1, 1))
    gang.wait_for_step(5)
    gang.signal("job-r0-s2", signal.SIGTERM)  # one rank is asked, all stop

    assert set(gang.wait().values()) == {ExitCode.STOPPED}
    stopped = gang.termination("job-r0-s1")
    assert stopped.reason == "Stopped"
    assert 5 <= stopped.step < STEPS
    assert f"checkpoint of step {stopped.step} " in stopped.message

    gang.start().finish()

    assert "resumed from the checkpoint" in gang.logs()
    assert_same_end(gang, undisturbed)


def test_when_a_stage_is_killed_the_others_leave_and_the_next_attempt_ends_the_same(
    undisturbed: Gang, make: Callable[[Plan], Gang]
) -> None:
    gang = make(long_plan(1, 1, 1, 1))
    gang.wait_for_step(12)
    gang.signal("job-r0-s3", signal.SIGKILL)

    codes = gang.wait()  # not as long as a collective would wait

    assert codes.pop("job-r0-s3") == 137
    assert set(codes.values()) == {ExitCode.PEER_LOST}
    assert gang.termination("job-r0-s0").reason == "PeerLost"

    gang.start().finish()

    assert_same_end(gang, undisturbed)


def scheduled(name: ScheduleName, *layers: int, ranks: int | None = None, **changes: Any) -> Plan:
    """A tied GPT under a schedule."""
    schedule = ScheduleSpec(name=name, micro_batches=4, micro_batch_size=2)
    return plan(*layers, ranks=ranks, model=TIED, schedule=schedule, **changes)


@pytest.mark.parametrize(
    "later",
    [
        scheduled(ScheduleName.ONE_F_ONE_B, 3, 1),
        scheduled(ScheduleName.ZB_H1, 1, 3),
        scheduled(ScheduleName.INTERLEAVED, 1, 1, 1, 1, ranks=2),
        scheduled(ScheduleName.DUALPIPE, 2, 2),
    ],
    ids=lambda later: later.schedule.name.value,
)
def test_a_checkpoint_of_four_stages_goes_on_as_two_ranks_of_any_schedule(
    make: Callable[[Plan], Gang], four: Gang, later: Plan
) -> None:
    folder = four.folder.with_name(f"{four.folder.name}-{later.schedule.name}")
    shutil.copytree(four.folder, folder)
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    two = Gang(folder, later, attempt=1, environment=four.environment)

    two.start().finish()

    assert "resumed from the checkpoint of step 3" in two.logs()
    assert two.losses() == pytest.approx(four.losses(), rel=1e-6)
    assert len(two.steps()) == 6 + 3  # the first run's, and those after the checkpoint, each told once
    assert sorted(names_in(two)) == sorted(names_in(four))


def names_in(gang: Gang) -> list[str]:
    """Name the tensors of all shards; one that stood in two of them would stand there twice."""
    return [name for shard in shards_of(gang, 6) for name in shard]


@pytest.fixture(scope="module")
def four(make: Callable[[Plan], Gang]) -> Gang:
    return make(scheduled(ScheduleName.ONE_F_ONE_B, 1, 1, 1, 1)).finish()


def test_a_tied_table_is_saved_once_and_under_the_embeddings_name(four: Gang) -> None:
    shards = shards_of(four, 6)

    assert [shard for shard, tensors in enumerate(shards) if "parameter/layers.0.token.weight" in tensors] == [0]
    assert not any("logits" in name for shard in shards for name in shard)


def test_an_evaluation_gives_the_unsplit_models_loss_on_text_that_is_not_trained_on(
    make: Callable[[Plan], Gang],
) -> None:
    evaluation = Evaluation(interval_steps=4, batches=2)
    evaluated = scheduled(ScheduleName.INTERLEAVED, 1, 1, 1, 1, ranks=2, evaluation=evaluation, replicas=2)
    gang = make(evaluated).finish()

    losses = {record.step: record.evaluation_loss for record in gang.steps()}
    assert [step for step, loss in losses.items() if loss is not None] == [4, 6]
    assert losses[6] == pytest.approx(unsplit_loss(evaluated, CheckpointFolder(gang.checkpoints)), rel=1e-6)
    assert losses[6] != losses[4]
    assert "evaluation loss" in gang.logs()


def unsplit_loss(evaluated: Plan, folder: CheckpointFolder) -> float:
    """Mean loss over the evaluation's batches, of the whole model in this process."""
    whole = build_part(evaluated.model, evaluated.data, stretches=[(0, 4)], seed=0)
    load_newest(whole, folder)
    assert evaluated.evaluation is not None
    training = open_dataset(
        evaluated.data, schedule=evaluated.schedule, replicas=2, seed=7, evaluation=evaluated.evaluation
    )
    batches = open_evaluation(evaluated.data, evaluated.evaluation, training=training)
    losses = []
    for step, replica, micro_batch in product((1, 2), (0, 1), range(4)):
        stream, targets, _ = batches.batch(step, replica, micro_batch)
        for layer in whole.layers:
            stream = layer.module.eval()(stream)
        losses.append(nn.functional.cross_entropy(stream.flatten(0, -2), targets.flatten()).item())
    return sum(losses) / len(losses)


def test_an_asynchronous_run_that_is_resumed_equals_one_that_never_stopped(make: Callable[[Plan], Gang]) -> None:
    schedule = ScheduleSpec(name=ScheduleName.PIPEDREAM, micro_batches=4, micro_batch_size=2)
    wanted = plan(1, 1, 1, 1, model=MODEL, schedule=schedule, training={"clip_norm": 0}, checkpoint={"keep": 3})
    whole = make(wanted).finish()
    resumed = Gang(whole.folder.with_name(f"{whole.folder.name}-resumed"), wanted, environment=whole.environment)
    shutil.copytree(whole.folder, resumed.folder)
    shutil.rmtree(resumed.checkpoints / "step-00000006")

    resumed.attempt = 1
    resumed.start().finish()

    assert "resumed from the checkpoint of step 3" in resumed.logs()
    assert resumed.losses() == whole.losses()
    assert all(torch.equal(tensor, state(whole, 6)[name]) for name, tensor in state(resumed, 6).items())


BYTEWISE = Model(entrypoint="layers.user_models:mlp", arguments={"width": "8"}, num_layers=5)


def resumed(first: Gang, wanted: Plan, name: str) -> Gang:
    """Go on from what a gang left, as another plan says, in a folder of its own."""
    folder = first.folder.with_name(f"{first.folder.name}-{name}")
    shutil.copytree(first.folder, folder)
    return Gang(folder, wanted, attempt=1, environment=first.environment).start()


def test_with_another_batch_a_resumed_run_goes_on_with_the_next_sample(make: Callable[[Plan], Gang]) -> None:
    first = make(plan(5, model=BYTEWISE, training={"steps": 3})).finish()
    larger = [
        plan(5, model=BYTEWISE, schedule=ScheduleSpec(micro_batches=4, micro_batch_size=2)),
        plan(
            2, 3, model=BYTEWISE, replicas=2, schedule=ScheduleSpec(name="GPipe", micro_batches=1, micro_batch_size=4)
        ),
    ]

    one, two = (resumed(first, wanted, str(number)).finish() for number, wanted in enumerate(larger))

    assert "resumed from the checkpoint of step 3, 12 samples into the text" in one.logs()
    assert one.losses() == pytest.approx(two.losses(), rel=1e-5)
    for gang in (one, two):
        place = CheckpointFolder(gang.checkpoints).open(6).manifest.place
        assert place is not None
        assert place.samples == 3 * 4 + 3 * 8


def test_with_longer_sequences_a_resumed_run_is_refused_or_begins_the_text_anew(make: Callable[[Plan], Gang]) -> None:
    first = make(plan(5, model=BYTEWISE, training={"steps": 3})).finish()
    data = Data(corpus="python-stdlib", sequence_length=32)
    refused = resumed(first, plan(5, model=BYTEWISE, data=data), "refused")
    anew = plan(5, model=BYTEWISE, data=data, checkpoint={"on_data_change": "StartAnew"})

    assert refused.wait() == {"job-r0-s0": ExitCode.USER_ERROR}
    assert refused.termination("job-r0-s0").reason == "DataChanged"
    assert "sequenceLength was 16 and is 32; put back" in refused.termination("job-r0-s0").message
    begun = resumed(first, anew, "anew").finish()
    assert "resumed from the checkpoint of step 3, at the beginning of the text, as spec.checkpoint." in begun.logs()
    place = CheckpointFolder(begun.checkpoints).open(6).manifest.place
    assert place is not None
    assert (place.samples, place.order.sequence_length) == (12, 32)


def test_two_replicas_train_as_one_with_twice_the_micro_batches(make: Callable[[Plan], Gang]) -> None:
    two = make(plan(2, 2, replicas=2, schedule=ScheduleSpec(micro_batches=2, micro_batch_size=2))).finish()
    one = make(plan(2, 2, schedule=ScheduleSpec(micro_batches=4, micro_batch_size=2))).finish()

    assert two.losses() == pytest.approx(one.losses(), rel=1e-5)


def test_a_stage_that_is_stopped_before_the_gang_is_complete_leaves_at_once(make: Callable[[Plan], Gang]) -> None:
    gang = make(plan(2, 2))
    gang.signal("job-r0-s1", signal.SIGKILL)
    gang.until(lambda: gang.get("job-r0-s0", "/healthz"), "the HTTP server answers")
    gang.signal("job-r0-s0", signal.SIGTERM)

    codes = gang.wait()

    assert codes["job-r0-s0"] == ExitCode.STOPPED
    assert gang.termination("job-r0-s0").reason == "Stopped"


def test_a_running_stage_can_be_watched(make: Callable[[Plan], Gang]) -> None:
    gang = make(plan(2, 2, training={"steps": 100_000}, checkpoint={"interval_steps": 0}))
    gang.wait_for_step(30)
    pod = "job-r0-s1"
    progress, metrics = gang.progress(pod), gang.get(pod, "/metrics")
    ready = gang.get(pod, "/readyz")
    gang.signal(pod, signal.SIGTERM)
    gang.wait()

    assert ready == "ok\n"
    assert progress.phase is Phase.TRAINING
    assert progress.step >= 30
    assert progress.loss is not None
    assert progress.bubble_ratio is not None
    assert 0 < progress.bubble_ratio < 1
    labels = '{namespace="default",pipelinejob="job",replica="0",stage="1"}'
    assert f"pipelinejob_predicted_step_seconds{labels} 0.1" in metrics
    states = re.findall(r'pipelinejob_stage_seconds_total\{.*state="(\w+)"\} (\S+)', metrics)
    walls = re.findall(r"pipelinejob_step_duration_seconds_sum\{.*\} (\S+)", metrics)
    assert {name for name, _ in states} >= {"forward", "backward_input", "recv", "optimizer", "idle"}
    assert sum(float(seconds) for _, seconds in states) == pytest.approx(float(walls[0]), rel=0.01)
    waiting = sum(float(seconds) for name, seconds in states if name in {"send", "recv", "idle"})
    causes = dict(re.findall(r'pipelinejob_stage_idle_seconds_total\{.*cause="([\w-]+)".*\} (\S+)', metrics))
    assert set(causes) == {*WaitCause, "other"}
    assert sum(map(float, causes.values())) == pytest.approx(waiting, rel=1e-6)
    assert float(causes["barrier"]) > 0
    received = re.findall(r'pipelinejob_p2p_bytes_total\{.*direction="recv".*\} (\S+)', metrics)
    steps = re.findall(r"pipelinejob_steps_total\{.*\} (\S+)", metrics)
    assert float(received[0]) == float(steps[0]) * 2 * (2 * 16 * 16 * 4)  # two micro-batches (2, 16, 16) of fp32


def test_every_rank_leaves_the_timelines_of_its_last_steps(undisturbed: Gang) -> None:
    for stage in range(4):
        file = undisturbed.folder / names.TIMELINES_FOLDER / f"job-r0-s{stage}.json"
        timeline = Timeline.model_validate_json(file.read_bytes())

        assert timeline.source == "measured"
        assert [each.step for each in timeline.stages] == [STEPS - 2, STEPS - 1, STEPS]
        assert {each.stage for each in timeline.stages} == {stage}
        started = timeline.stages[-1].started
        assert started is not None
        assert abs(started - undisturbed.steps()[-1].time) < 5


def test_the_unsplit_model_speaks(undisturbed: Gang) -> None:
    command = [sys.executable, "-m", "pipelinejob_trainer", "sample", "--plan", str(undisturbed.folder / "plan.json")]
    options = ["--checkpoints", str(undisturbed.checkpoints), "--prompt", "def ", "--tokens", "20"]
    runs = [
        subprocess.run([*command, *options], capture_output=True, text=True, cwd=TESTS, check=True).stdout for _ in "ab"
    ]

    assert runs[0].startswith("def ")
    assert len(runs[0].encode(errors="replace")) > len("def ")
    assert runs[0] == runs[1]
