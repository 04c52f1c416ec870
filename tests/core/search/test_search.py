"""What a search chooses: never worse than what it could have chosen, within memory, on unlike devices, in few words."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pipelinejob.base.errors import SpecError
from pipelinejob.fabric import hardware
from pipelinejob.fabric.hardware import LinkKind
from pipelinejob.fabric.pool import Pool, PoolGroup
from pipelinejob.planning.planner import counted, make_plan
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.search.best import search
from pipelinejob.search.space import Space
from pipelinejob.search.step_bounds import Joined, Table, chain_floor_s, option_floor_s
from pipelinejob.spec.chosen import Chosen, resolved
from pipelinejob.spec.job import PipelineJobSpec
from support.examples import examples

HARDWARE = hardware.default()
H100 = HARDWARE.devices["H100-SXM"]
A100 = HARDWARE.devices["A100-SXM-80GB"]


def spec_of(parallelism, schedule, *, layers=6, width=512, vocabulary=4096, precision="bf16", **others):
    return PipelineJobSpec.model_validate({
        "model": {"gpt": {"numLayers": layers, "hiddenSize": width, "numHeads": 8, "vocabularySize": vocabulary}},
        "data": {"corpus": "python-stdlib", "sequenceLength": 512},
        "parallelism": parallelism,
        "schedule": schedule,
        "training": {"steps": 1, "precision": precision},
        **others,
    })  # fmt: skip


def apart(device, count):
    """Nodes of one device each, so that all links are the network's."""
    return Pool(groups=(PoolGroup(device=device, gpus_per_node=1, num_nodes=count),))


def step_s(spec, device=H100):
    plan = make_plan(
        namespace="n", name="j", spec=spec, devices=(device,) * spec.parallelism.pipeline, hardware=HARDWARE
    )
    return plan.prediction.step_s


def every_choice(spec, gpus, batch, names):
    """Write down what there is to choose, one GPU a stage."""
    for pipeline in range(1, gpus + 1):
        for data in (each for each in range(1, gpus // pipeline + 1) if batch % each == 0):
            for size in (each for each in (1, 2, 4, 8) if batch // data % each == 0):
                for name in names if pipeline > 1 else [ScheduleName.ONE_F_ONE_B]:
                    for recompute in (False, True):
                        yield resolved(
                            spec,
                            Chosen(
                                pipeline=pipeline, data=data, tensor=1, schedule=name, recompute=recompute,
                                micro_batches=batch // data // size, micro_batch_size=size,
                            ),
                        )  # fmt: skip


NAMED = [
    ScheduleName.GPIPE,
    ScheduleName.ONE_F_ONE_B,
    ScheduleName.ZB_H1,
    ScheduleName.ZB_H2,
    ScheduleName.ZB_V,
    ScheduleName.V_HALF,
    ScheduleName.DUALPIPE_V,
]


@settings(max_examples=examples(5), phases=[Phase.generate])
@given(
    gpus=st.sampled_from([2, 3, 4]),
    layers=st.integers(2, 6),
    width=st.sampled_from([128, 512, 2048]),
    vocabulary=st.sampled_from([256, 50304]),
    batch=st.sampled_from([4, 8]),
)
def test_no_configuration_that_could_have_been_chosen_is_quicker(gpus, layers, width, vocabulary, batch):
    spec = spec_of(
        {"gpus": gpus}, {"name": "auto", "globalBatchSize": batch}, layers=layers, width=width, vocabulary=vocabulary
    )

    found = search(spec, apart(H100, gpus), hardware=HARDWARE, effort=1_000_000)

    assert found.is_complete
    for each in every_choice(spec, gpus, batch, NAMED):
        try:
            seconds = step_s(each)
        except SpecError:  # not for these sizes
            continue
        assert found.best.step_s <= seconds * (1 + 1e-9), each


@settings(max_examples=examples(5), phases=[Phase.generate])
@given(gpus=st.sampled_from([2, 4]), layers=st.integers(2, 6), vocabulary=st.sampled_from([256, 50304]))
def test_a_search_for_one_schedule_finds_what_trying_everything_finds(gpus, layers, vocabulary):
    spec = spec_of({"gpus": gpus}, {"name": "1F1B", "globalBatchSize": 8}, layers=layers, vocabulary=vocabulary)
    tried = every_choice(spec, gpus, 8, [ScheduleName.ONE_F_ONE_B])

    found = search(spec, apart(H100, gpus), hardware=HARDWARE)

    fitting = [each for each in tried if each.parallelism.pipeline <= layers + 2]
    assert found.best.step_s == pytest.approx(min(map(step_s, fitting)), rel=1e-9)


@settings(max_examples=examples(12), phases=[Phase.generate])
@given(
    name=st.sampled_from([*NAMED, ScheduleName.ZB_1P, ScheduleName.CHIMERA, ScheduleName.INTERLEAVED]),
    pipeline=st.sampled_from([2, 4]),
    data=st.sampled_from([1, 2]),
    micro_batches=st.integers(1, 9),
    vocabulary=st.sampled_from([256, 50304]),
    others=st.tuples(st.booleans(), st.booleans()),
)
def test_no_step_is_shorter_than_its_bounds(name, pipeline, data, micro_batches, vocabulary, others):  # noqa: PLR0917
    recompute, slow = others
    groups = [PoolGroup(device=H100, gpus_per_node=1, num_nodes=pipeline * data)]
    if slow:
        groups.append(PoolGroup(device=A100, gpus_per_node=1, num_nodes=data))
    pool = Pool(groups=tuple(groups))
    schedule = {"name": name.value, "batchSize": micro_batches, "microBatchSize": 1, "recompute": recompute}
    spec = spec_of({"pipeline": pipeline, "data": data, "tensor": 1}, schedule, layers=9, vocabulary=vocabulary)
    space = Space(spec, pool, HARDWARE)

    for candidate in search(spec, pool, hardware=HARDWARE).candidates:
        layout = next(
            each for each in space.layouts()
            if tuple(device.name for device in space.devices(each)) == tuple(d.name for d in candidate.devices)
        )  # fmt: skip
        option = next(each for each in space.options(layout) if each.virtual_stages == candidate.chosen.virtual_stages)
        fastest = max(device.attained_flops(spec.training.precision) for device in candidate.devices)
        speeds = tuple(each.attained_flops(spec.training.precision) / fastest for each in candidate.devices)
        device = max(candidate.devices, key=lambda each: each.attained_flops(spec.training.precision))
        table = Table(profile=counted(candidate.spec, [device], HARDWARE))
        joined = Joined(hop=space.worst_hop(layout), ring=space.best_ring(layout))
        floors = [floor(option, table, speeds, joined) for floor in (option_floor_s, chain_floor_s)]

        assert max(floors) <= candidate.step_s * (1 + 1e-9)


def test_memory_decides_how_far_a_model_is_split_and_what_is_computed_again():
    """Some 1.6 GB of state: two devices of 1 GB hold it, one does not."""
    small = replace(H100, name="small", memory_bytes=1_000_000_000)
    spec = spec_of({"gpus": 4}, {"name": "1F1B", "globalBatchSize": 8}, layers=8, width=1024, vocabulary=256)

    found = search(spec, apart(small, 4), hardware=HARDWARE)

    assert all(max(each.memory_bytes) <= 1_000_000_000 for each in found.candidates)
    assert found.best.chosen.pipeline > 1
    (alone,) = (each for each in found.rejected if each.what == "pipeline 1")
    assert alone.why.startswith("a stage would take 2 GB of 1 GB")


def test_a_model_that_fits_nowhere_is_told_what_it_would_take():
    tiny = replace(H100, name="tiny", memory_bytes=100_000_000)
    spec = spec_of({"gpus": 2}, {"name": "1F1B", "globalBatchSize": 8}, layers=8, width=1024)

    with pytest.raises(
        SpecError, match=r"spec.parallelism: nothing fits: pipeline 1 to 2: a stage would take 1 GB of 0"
    ):
        search(spec, apart(tiny, 2), hardware=HARDWARE)


def test_a_pool_without_a_free_device_is_refused():
    spec = spec_of({"gpus": 2}, {"name": "1F1B", "globalBatchSize": 8})

    with pytest.raises(SpecError, match="no device is free"):
        search(spec, Pool.of([(H100, 0)]), hardware=HARDWARE)


def test_a_small_model_on_a_slow_network_is_not_pipelined():
    slow = LinkKind(name="slow", latency_s=0.001, bytes_per_s=1.25e9)
    pool = Pool(groups=(PoolGroup(device=H100, gpus_per_node=1, num_nodes=4, link=slow),))
    spec = spec_of({"gpus": 4, "tensor": 1}, {"name": "auto", "globalBatchSize": 64}, layers=4, width=128)

    found = search(spec, pool, hardware=HARDWARE)

    assert found.best.chosen.pipeline == 1
    assert found.best.title.startswith("no pipeline")


def test_a_slow_device_gets_fewer_layers():
    groups = (
        PoolGroup(device=H100, gpus_per_node=1, num_nodes=3),
        PoolGroup(device=replace(H100, name="slow", attained=H100.attained / 3), gpus_per_node=1, num_nodes=1),
    )
    spec = spec_of(
        {"pipeline": 4, "data": 1, "tensor": 1, "gpus": 4}, {"name": "1F1B", "batchSize": 32, "microBatchSize": 1},
        layers=18, width=2048, vocabulary=256,
    )  # fmt: skip

    best = search(spec, Pool(groups=groups), hardware=HARDWARE).best

    layers = {device.name: count for device, count in zip(best.devices, best.layers, strict=True)}
    assert layers["slow"] < layers["H100-SXM"]


def test_over_a_slow_link_each_provider_holds_stages_side_by_side():
    """Two providers of two devices each, joined by a tenth of a millisecond a byte's thousandth: one crossing."""
    wan = LinkKind(name="wan", latency_s=0.03, bytes_per_s=0.125e9)
    here = PoolGroup(device=H100, gpus_per_node=2, num_nodes=1)
    there = PoolGroup(device=replace(H100, name="H100-there"), gpus_per_node=2, num_nodes=1)
    spec = spec_of(
        {"pipeline": 4, "data": 1, "tensor": 1, "gpus": 4}, {"name": "1F1B", "batchSize": 32}, layers=10, width=2048
    )

    best = search(spec, Pool(groups=(here, there), link=wan), hardware=HARDWARE).best

    names = [device.name for device in best.devices]
    assert sorted(map(names.count, set(names))) == [2, 2]
    assert sum(one != other for one, other in pairwise(names)) == 1
    assert best.links.hop(1, 2).name == "wan"


def test_what_is_fixed_stays_and_the_rest_is_chosen():
    spec = spec_of({"gpus": 4, "data": 2, "tensor": 1}, {"name": "ZB-H1", "globalBatchSize": 16, "microBatches": 4})

    found = search(spec, Pool.alike(H100, 4), hardware=HARDWARE)

    assert {each.chosen.data for each in found.candidates} == {2}
    assert {(each.chosen.micro_batches, each.chosen.micro_batch_size) for each in found.candidates} == {(4, 2)}
    assert not resolved(spec, found.best.chosen).is_open


def test_a_plan_of_what_was_found_promises_what_the_search_did():
    spec = spec_of({"gpus": 8}, {"name": "auto", "globalBatchSize": 16})

    best = search(spec, Pool.alike(H100, 8), hardware=HARDWARE).best
    plan = make_plan(namespace="n", name="j", spec=best.spec, devices=best.devices, links=best.links, hardware=HARDWARE)

    assert plan.prediction.step_s == pytest.approx(best.step_s, rel=1e-12)
    assert tuple(stage.memory_bytes for stage in plan.stages) == best.memory_bytes


def test_a_batch_that_micro_batches_do_not_fill_has_a_smaller_last_one():
    spec = spec_of({"pipeline": 2}, {"name": "1F1B", "batchSize": 7, "microBatchSize": 2})

    chosen = search(spec, apart(H100, 2), hardware=HARDWARE).best.chosen

    assert (chosen.micro_batches, chosen.micro_batch_size, chosen.batch_size) == (4, 2, 7)


def test_gpt3_on_4096_devices_is_split_as_memory_and_links_ask():
    """8 stages x 8 x 64 is what Narayanan et al. (2021) ran 175 billion parameters on 1,024 and more devices with."""
    spec = PipelineJobSpec.model_validate({
        "model": {"gpt": {"numLayers": 96, "hiddenSize": 12288, "numHeads": 96, "vocabularySize": 51200}},
        "data": {"corpus": "python-stdlib", "sequenceLength": 2048},
        "parallelism": {"gpus": 4096},
        "schedule": {"name": "1F1B", "globalBatchSize": 1536},
        "training": {"steps": 1, "precision": "bf16"},
    })  # fmt: skip

    best = search(spec, Pool.alike(H100, 4096), hardware=HARDWARE).best

    assert best.chosen.num_gpus == 4096
    assert best.chosen.pipeline > 1
    assert best.chosen.tensor > 1
    assert max(best.memory_bytes) <= 80e9
    assert best.step_s < step_s_of_the_seeds(spec)


def step_s_of_the_seeds(spec):
    chosen = Chosen(pipeline=8, data=64, tensor=8, schedule="1F1B", micro_batches=24, micro_batch_size=1)
    return step_s(resolved(spec, chosen)) * (1 + 1e-9)
