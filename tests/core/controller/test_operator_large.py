"""Large jobs: a status and a plan are never larger than the cluster stores, and what is refused is written shorter."""

import json

import pytest

from pipelinejob.base.errors import SpecError
from pipelinejob.contract.plan import Assignment, LinkPlan, Placement, Plan
from pipelinejob.spec.reported.plan_summary import PlannedStage, PlanSummary
from pipelinejob.spec.reported.stage_status import StageStatus
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.cluster import Key, TooLargeError
from pipelinejob_operator.objects.making.plan_text import MAX_BYTES, plan_text
from pipelinejob_operator.objects.status_size import MAX_SENTENCES_BYTES, MAX_STATUS_BYTES, bounded, size
from support.clusters.operatorworld import World
from support.manifests.jobs import job, node

RANKS = 2048
KIB = 1024


def stage(number, **changes):
    name = f"ip-10-{number // 256}-{number % 256}-7.eu-central-1.compute.internal"
    values = {
        "replica": number // 1024,
        "stage": number % 1024,
        "pod": f"llama-405b-r{number // 1024}-s{number % 1024}",
        "node": name,
        "path": f"zone-a/spine-{number // 512}/leaf-{number // 64}/{name}",
        "ready": True,
        "step": 120_000,
        "utilization": "87.2%",
        "bubble": "8.1%",
        "memory_bytes": 70_000_000_000,
    }
    return StageStatus(**values | changes)


def failed(number, code=75):
    return stage(number, ready=False, exit_code=code, reason="PeerLost", message=f"{number} " + "é" * 998)


def status(stages):
    planned = tuple(PlannedStage(stage=n, layers=f"{n}-{n}", memory_bytes=70_000_000_000) for n in range(1024))
    plan = PlanSummary(stages=planned, bubble="8.1%", source="profiled")
    return PipelineJobStatus(stages=tuple(stages), plan=plan, attempt=3, restarts=2)


def test_a_sentence_on_each_of_2048_ranks_fits_and_the_ones_that_matter_are_kept():
    full = status(failed(n, code=1 if n in {700, 1900} else 75) for n in range(RANKS))
    assert size(full) > 4_000 * KIB

    short = bounded(full)

    assert size(short) < MAX_STATUS_BYTES
    told = [each for each in short.stages if each.message]
    assert sum(len(each.message.encode()) for each in told) < MAX_SENTENCES_BYTES
    assert {(0, 700), (1, 876)} <= {(each.replica, each.stage) for each in told}
    assert {each.reason for each in short.stages} == {"PeerLost"}
    assert short.left_out == ("too large to be stored whole; left out: sentences of single stages")


def test_what_the_job_goes_on_by_always_stays():
    full = status(failed(n) for n in range(RANKS))

    least = bounded(full, 0)

    kept = ("replica", "stage", "pod", "node", "path", "ready", "restarts", "exit_code", "reason")
    assert [[getattr(each, name) for name in kept] for each in least.stages] == [
        [getattr(each, name) for name in kept] for each in full.stages
    ]
    assert (least.attempt, least.restarts) == (3, 2)
    assert not [each for each in least.stages if each.message or each.step or each.memory_bytes]
    assert size(least) < 550 * KIB


def test_a_small_status_stays_as_it_is():
    small = status([stage(0), failed(1)])

    assert bounded(small) == small


@pytest.mark.parametrize("limit", [MAX_STATUS_BYTES, MAX_STATUS_BYTES // 2, 0])
def test_a_status_that_was_shortened_is_not_shortened_again(limit):
    once = bounded(status(failed(n) for n in range(RANKS)), limit)

    assert bounded(once, limit) == once


def test_it_is_no_longer_said_once_nothing_is_left_out():
    short = bounded(status(failed(n) for n in range(RANKS)))

    whole = bounded(short.model_copy(update={"stages": tuple(stage(n) for n in range(4))}))

    assert whole.left_out is None


# ---- what the cluster refuses


class Small(World):
    """Its cluster stores statuses up to so many bytes."""

    def __init__(self, *arguments, most=1_000_000):
        super().__init__(*arguments)
        self.most, self.refused, write = most, 0, self.cluster.write_status

        async def write_status(item, found):
            if len(json.dumps(found)) > self.most:
                self.refused += 1
                raise TooLargeError("etcdserver: request is too large")
            await write(item, found)

        self.cluster.write_status = write_status


STAGES = 8


@pytest.fixture
def small():
    """A job whose stages all failed, each with a long sentence, where only a status without these is stored."""
    world = Small([node("n0", gpus=STAGES)])
    world.submit(job(parallelism={"pipeline": STAGES}, schedule={"name": "1F1B", "microBatches": STAGES}))
    world.train()
    world.most = len(json.dumps(world.status(Key("default", "gpt")))) + 5000
    for pod in world.cluster.all_pods():
        world.cluster.set_pod(pod, phase="Failed", code=1, message="no such data " * 70)
    return world


def test_a_status_that_is_refused_is_written_shorter_and_says_so(small):
    small.settle()

    status = small.status(Key("default", "gpt"))
    assert status["leftOut"].startswith("too large to be stored whole; left out: measurements of single stages")
    assert (status["attempt"], status["restarts"]) == (2, 1)
    assert not [each for each in status["stages"] if "message" in each]


def test_a_large_status_is_refused_once_and_not_at_each_pass(small):
    small.settle()
    before = small.refused
    assert before == 2  # at two limits of three

    for _ in range(5):
        small.cluster.pass_time(30)
        small.settle()

    assert small.refused == before


def test_where_not_even_the_shortest_is_stored_the_error_backs_off_and_an_event_says_so():
    world = Small([node("n0", gpus=2)], most=10)
    key = world.submit(job())

    with pytest.raises(TooLargeError):
        world.reconcile(key)

    assert world.told() == ["StatusTooLarge"]
    assert world.cluster.all_pods() == []


# ---- plans


def plan(**changes):
    world = World([node("n0", gpus=2)])
    world.submit(job())
    world.settle()
    text = world.cluster.objects["ConfigMap", "default", "gpt-plan"]["data"]["plan.json"]
    return Plan.from_json(text).model_copy(update=changes)


def test_a_plan_leaves_out_what_no_trainer_reads_only_where_it_must():
    path = ("zone", "spine", "leaf", "n" * 253)
    placement = Placement(
        assignments=tuple(Assignment(replica=0, stage=n, node="n" * 253, path=path) for n in range(RANKS)),
        crossings={},
    )
    small = plan()
    large = small.model_copy(update={"placement": placement})

    assert Plan.from_json(plan_text(small)) == small
    assert Plan.from_json(plan_text(large)) == large.model_copy(update={"placement": None})


def test_a_plan_that_no_config_map_holds_is_refused_with_the_way_out():
    large = plan(
        schedule_actions="x" * (MAX_BYTES + 1),
        links=(LinkPlan(between=(0, 1), kind="ib", latency_s=1e-6, bytes_per_s=1e9),),
    )

    with pytest.raises(SpecError, match="use fewer stages or micro-batches"):
        plan_text(large)
