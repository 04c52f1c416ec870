"""From nodes to a plan: on which devices a job is drafted and placed, and what the plan says of them."""

from fractions import Fraction

import pytest

from pipelinejob.base.errors import NoPlacementError
from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.placement.capacity import Demand
from pipelinejob.siting.site import PRODUCT, Site
from pipelinejob.spec.job import PipelineJobSpec

GPU = "nvidia.com/gpu"
ZONE = "topology.kubernetes.io/zone"
H100, A100 = "NVIDIA-H100-80GB-HBM3", "NVIDIA-A100-SXM4-80GB"


def node(name, product, *, gpus=8, zone="a"):
    return NodeInfo(name=name, labels={PRODUCT: product, ZONE: zone}, free={GPU: Fraction(gpus)})


def spec(count, **topology):
    return PipelineJobSpec.model_validate({
        "model": {"gpt": {"numLayers": 14, "hiddenSize": 1024, "numHeads": 16, "vocabularySize": 8192}},
        "data": {"corpus": "python-stdlib", "sequenceLength": 1024},
        "parallelism": {"pipeline": count},
        "schedule": {"name": "1F1B", "microBatches": 16, "microBatchSize": 1},
        "training": {"steps": 10, "precision": "bf16"},
        "topology": topology,
    })  # fmt: skip


def demands(wanted):
    return [Demand(replica=0, stage=stage, requests={GPU: 1}) for stage in range(wanted.parallelism.pipeline)]


def site_of(nodes):
    return Site.of(nodes, Topology.of(nodes), demands)


def placed(nodes, count, **topology):
    draft = site_of(nodes).draft(spec(count, **topology), namespace="n", name="j")
    return draft.placed(draft.place()).plan


def devices(plan):
    return [stage.device for stage in plan.stages]


def test_a_job_goes_to_the_faster_devices_though_there_are_fewer_of_them():
    nodes = [node("fast", H100, zone="b"), *(node(f"slow-{index}", A100) for index in range(4))]

    plan = placed(nodes, 8)

    assert devices(plan) == ["H100-SXM"] * 8
    assert {each.node for each in plan.placement.assignments} == {"fast"}


def test_a_job_that_the_faster_devices_do_not_hold_takes_slower_ones_too_and_gives_them_fewer_layers():
    nodes = [node("fast", H100, gpus=4), node("slow", A100, gpus=8)]

    plan = placed(nodes, 6)

    layers = {stage.device: [] for stage in plan.stages}
    for stage in plan.stages:
        layers[stage.device].append(stage.num_layers)
    assert sorted(devices(plan)) == ["A100-SXM-80GB"] * 2 + ["H100-SXM"] * 4
    assert max(layers["A100-SXM-80GB"]) < max(layers["H100-SXM"])


def test_a_required_level_counts_before_speed():
    nodes = [node("fast-a", H100, gpus=2), node("fast-b", H100, gpus=2, zone="b"), node("slow", A100, zone="b")]

    plan = placed(nodes, 4, pipeline={"required": "zone"})

    assert {each.path[0] for each in plan.placement.assignments} == {"b"}


def test_what_no_device_holds_is_said_of_all_nodes():
    nodes = [node("fast", H100, gpus=2), node("slow", A100, gpus=3)]

    with pytest.raises(NoPlacementError, match=r"8 .* 5"):
        placed(nodes, 8)


def test_a_site_without_labels_is_reckoned_without_a_bound_on_memory():
    nodes = [NodeInfo(name="plain", labels={}, free={GPU: Fraction(8)})]

    site = site_of(nodes)

    assert site.likely_device(spec(4), site.pool(spec(4))).memory_bytes is None
    assert placed(nodes, 4).prediction.closest_step_s is not None
