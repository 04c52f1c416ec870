"""The same request gets the same answer from the command line, from `run` and from the operator."""

import json
import sys
from fractions import Fraction
from types import FrameType
from typing import Any, NamedTuple

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipelinejob.contract.plan import Plan
from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.placement.capacity import Demand
from pipelinejob.siting.door import plan_job
from pipelinejob.siting.request import Planned, Request
from pipelinejob.siting.site import Site
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob_operator.cli.exits import Exit
from pipelinejob_operator.cli.given.decided import decided
from pipelinejob_operator.cli.given.manifests import given_job
from pipelinejob_operator.local.node.machine import Machine
from support.clusters.operatorworld import World
from support.examples import examples
from support.manifests.jobs import job, node

ZONE, PRODUCT = "topology.kubernetes.io/zone", "nvidia.com/gpu.product"
PRODUCTS = ("NVIDIA-H100-80GB-HBM3", "NVIDIA-A100-SXM4-80GB", "Tesla-T4")

# Each example is planned twice, some by a search of a second.
few = settings(
    max_examples=examples(8),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # to shrink one takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Answer(NamedTuple):
    """What is trained where: all of a plan but the account of its place, or why there is none."""

    plan: dict[str, Any] | None
    nodes: tuple[tuple[int, int, str], ...] = ()
    shortfall: str = ""


def answer_of(plan: Plan) -> Answer:
    assert plan.placement is not None
    nodes = tuple((each.replica, each.stage, each.node) for each in plan.placement.assignments)
    return Answer(plan.model_copy(update={"placement": None}).dump(), nodes)


@pytest.fixture
def by_command(call, tmp_path):
    def ask(manifest: dict[str, Any], nodes: list[dict[str, Any]], *, alternatives: int = 0) -> Answer:
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(manifest))
        (tmp_path / "nodes.json").write_text(json.dumps({"items": nodes}))
        found = call(
            "plan", tmp_path / "job.yaml", "--nodes", tmp_path / "nodes.json", "-o", "json",
            *(("--alternatives", str(alternatives)) if alternatives != 4 else ()),
        )  # fmt: skip
        if found.code == Exit.INVALID_MANIFEST:
            return Answer(None, (), found.err.removeprefix("error: ").strip())
        told = json.loads(found.out)
        return answer_of(Plan.model_validate(told["plan"])) if told["fits"] else Answer(None, (), told["shortfall"])

    return ask


def by_operator(manifest: dict[str, Any], nodes: list[dict[str, Any]]) -> Answer:
    world = World(nodes)
    key = world.submit(manifest)
    world.settle()
    config_map = world.cluster.objects.get(("ConfigMap", key.namespace, f"{key.name}-plan"))
    if config_map is None:
        return Answer(None, (), "; ".join(each["message"] for each in world.status(key)["conditions"]))
    return answer_of(Plan.from_json(config_map["data"]["plan.json"]))


@st.composite
def clusters(draw: st.DrawFn) -> list[dict[str, Any]]:
    made = []
    for index in range(draw(st.integers(1, 4))):
        labels = {ZONE: draw(st.sampled_from("ab"))}
        if (product := draw(st.sampled_from((None, *PRODUCTS)))) is not None:
            labels[PRODUCT] = product
        made.append(node(f"n{index}", gpus=draw(st.sampled_from((1, 2, 4))), labels=labels))
    return made


def models() -> st.SearchStrategy[dict[str, Any]]:
    sizes = st.sampled_from(((8, 256, 4), (14, 1024, 16), (20, 2048, 16)))
    return sizes.map(lambda each: {"gpt": dict(zip(("numLayers", "hiddenSize", "numHeads"), each, strict=True))})


decided_jobs = st.builds(
    job,
    device=st.just("gpu"),
    model=models(),
    parallelism=st.builds(lambda p, d: {"pipeline": p, "data": d}, st.integers(1, 6), st.integers(1, 2)),
    schedule=st.sampled_from(("GPipe", "1F1B", "ZB-H1", "DualPipeV")).map(
        lambda name: {"name": name, "microBatches": 8}
    ),
    topology=st.sampled_from(({}, {"pipeline": {"required": "zone"}}, {"objective": "pack"})),
    template=st.sampled_from(({}, {"spec": {"nodeSelector": {PRODUCT: PRODUCTS[1]}}})),
)


def open_jobs(*devices: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        job,
        device=st.sampled_from(devices),
        model=models(),
        parallelism=st.sampled_from(({"gpus": 4}, {"gpus": 2}, {"gpus": 4, "pipeline": 2})),
        schedule=st.sampled_from(("1F1B", "ZB-H1", "auto")).map(lambda name: {"name": name, "globalBatchSize": 8}),
    )


@few
@given(manifest=decided_jobs, nodes=clusters())
def test_a_decided_job_gets_the_same_plan_and_place_by_command_and_by_operator(by_command, manifest, nodes):
    asked, made = by_command(manifest, nodes), by_operator(manifest, nodes)

    assert (made.plan, made.nodes) == (asked.plan, asked.nodes)
    assert asked.shortfall in made.shortfall


@few
@given(manifest=open_jobs("gpu"), nodes=clusters(), alternatives=st.sampled_from((0, 1, 4)))
def test_an_open_job_gets_the_same_choice_and_place_by_command_and_by_operator(
    by_command, manifest, nodes, alternatives
):
    asked, made = by_command(manifest, nodes, alternatives=alternatives), by_operator(manifest, nodes)

    assert (made.plan, made.nodes) == (asked.plan, asked.nodes)
    assert asked.shortfall in made.shortfall


@few
@given(manifest=open_jobs("gpu", "cpu"), num=st.sampled_from((2, 4)))
def test_a_run_chooses_what_the_command_and_the_operator_choose_for_this_machine(by_command, manifest, num):
    gpus = num if manifest["spec"]["device"] == "gpu" else 64  # the fake cluster's laws count one a pod, used or not
    machine = Machine(hostname="here", cores=num, memory_bytes=2**36, gpus=tuple(map(str, range(gpus))))

    run, _ = decided(given_job(manifest), machine)
    asked, made = by_command(manifest, [machine.node()]), by_operator(manifest, [machine.node()])

    assert asked == made
    assert asked.plan is not None
    chosen = {part: asked.plan[part] for part in ("parallelism", "schedule")}
    assert chosen == {"parallelism": run.spec.parallelism.dump(), "schedule": run.spec.schedule.dump()}


@pytest.mark.parametrize(
    "changes", [{}, {"parallelism": {"gpus": 4}, "schedule": {"globalBatchSize": 8}}], ids=["decided", "open"]
)
def test_a_spec_passes_through_at_most_twelve_modules_on_its_way_to_a_plan(changes):
    spec, took = PipelineJobSpec.model_validate(job(**changes)["spec"]), set[str]()
    nodes = [NodeInfo(name="n", free={"nvidia.com/gpu": Fraction(4)})]
    site = Site.of(nodes, Topology.of(nodes), _one_gpu_each)

    def look(frame: FrameType, event: str, _: object) -> None:
        name = str(frame.f_globals.get("__name__"))
        if event == "call" and any(isinstance(each, PipelineJobSpec) for each in frame.f_locals.values()):
            took.update({name} if name.startswith("pipelinejob.") else ())

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        answer = plan_job(Request(namespace="n", name="j", spec=spec, on=site, num_alternatives=2))
    finally:
        sys.setprofile(before)

    assert isinstance(answer, Planned)
    assert {"pipelinejob.siting.door", "pipelinejob.planning.planner"} <= took
    assert len(took) <= 12, sorted(took)


def _one_gpu_each(spec: PipelineJobSpec) -> list[Demand]:
    return [
        Demand(replica=replica, stage=stage, requests={"nvidia.com/gpu": 1})
        for replica in range(spec.parallelism.data)
        for stage in range(spec.parallelism.pipeline)
    ]
