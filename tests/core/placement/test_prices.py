"""Prices: what a slow link costs a step is what simulating it says, no more and no less."""

from dataclasses import replace

import pytest

from pipelinejob.costs.links import Links
from pipelinejob.fabric import hardware, network
from pipelinejob.fabric.hardware import LinkKind
from pipelinejob.fabric.network import Network, common_depth
from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.placement.prices import crossing_prices, prices_of, ring_depth
from pipelinejob.planning.planner import counted, division_of, make_plan
from pipelinejob.planning.playing import schedule_of
from pipelinejob.planning.step_prediction import simulated
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob.spec.network.topology_profile import Link, ProfileLevel, TopologyProfileSpec

FAST = LinkKind(name="fast", latency_s=1e-6, bytes_per_s=400e9)
PORT = LinkKind(name="port", latency_s=1e-5, bytes_per_s=50e9)
SLOW = LinkKind(name="slow", latency_s=1e-4, bytes_per_s=2e9)
NETWORK = Network(levels=("pod", "leaf", "node"), links=(SLOW, PORT, PORT, FAST))


GPT = {"gpt": {"numLayers": 30, "hiddenSize": 4096, "numHeads": 32}}
EXPERTS = {"decoder": GPT["gpt"] | {"feedForwardSize": 1024, "experts": {"num": 4}}}


def planned(pipeline, *, data=1, schedule="1F1B", micro_batches=None, sharding="none", expert=1):
    spec = PipelineJobSpec.model_validate(
        {
            "model": GPT if expert == 1 else EXPERTS,
            "data": {"corpus": "python-stdlib", "sequenceLength": 2048},
            "parallelism": {"pipeline": pipeline, "data": data, "sharding": sharding, "expert": expert},
            "schedule": {"name": schedule, "microBatches": micro_batches or 4 * pipeline, "microBatchSize": 1},
            "training": {"steps": 1, "precision": "bf16"},
        }
    )
    profile = counted(spec).model_copy(update={"device_memory_bytes": None})
    return make_plan(namespace="default", name="job", spec=spec, profile=profile), profile


def priced(pipeline, **options):
    return prices_of(*planned(pipeline, **options), NETWORK)


def step_s(plan, profile, links):
    division = replace(division_of(plan, profile), links=links)
    return simulated(division, schedule_of(plan), replicas=plan.parallelism.data).step_s


def closest(pipeline, data):
    pairs = {(stage, (stage + 1) % pipeline): FAST for stage in range(pipeline)}
    return Links(hops=pairs, rings=dict.fromkeys(range(pipeline), FAST) if data > 1 else {})


@pytest.mark.parametrize("schedule", ["1F1B", "GPipe", "ZB-H1", "Interleaved1F1B"])
@pytest.mark.parametrize("boundary", [0, 2])
def test_a_boundarys_price_is_what_the_simulator_says_of_it(schedule, boundary):
    plan, profile = planned(4, schedule=schedule)
    prices = prices_of(plan, profile, NETWORK)
    links = closest(4, 1)
    slow = replace(links, hops={**links.hops, (boundary, boundary + 1): SLOW})

    longer = step_s(plan, profile, slow) - step_s(plan, profile, links)

    assert prices.step_s == pytest.approx(step_s(plan, profile, links))
    assert longer > 0
    assert prices.chain[boundary][0] == pytest.approx(longer)


SHARED = [{}, {"sharding": "full"}, {"expert": 2}, {"sharding": "full", "expert": 2}]


@pytest.mark.parametrize("shared", SHARED, ids=["none", "full", "experts", "both"])
def test_a_rings_price_is_what_the_simulator_says_of_it(shared):
    plan, profile = planned(4, data=4, **shared)
    prices = prices_of(plan, profile, NETWORK)
    links = closest(4, 4)

    for stage in range(4):
        slow = replace(links, rings={**links.rings, stage: SLOW})
        longer = step_s(plan, profile, slow) - step_s(plan, profile, links)
        assert prices.ring[stage][0] == pytest.approx(longer)


def test_a_long_steps_prices_are_those_of_the_whole_of_it():
    plan, profile = planned(4, micro_batches=90)
    links = closest(4, 1)
    slow = replace(links, hops={**links.hops, (1, 2): SLOW})

    longer = step_s(plan, profile, slow) - step_s(plan, profile, links)

    assert prices_of(plan, profile, NETWORK).chain[1][0] == pytest.approx(longer, rel=1e-6)


def test_in_1f1b_a_slow_boundary_costs_more_near_the_end():
    prices = [price[0] for price in priced(8).chain]

    assert prices[:-1] == sorted(prices[:-1])  # the last stage, with the head, is not like the others
    assert prices[-2] > 1.4 * prices[0]


def test_what_is_slow_in_gpipe_costs_the_same_wherever_it_stands():
    prices = [price[1] for price in priced(4, schedule="GPipe").chain]

    assert max(prices) == pytest.approx(min(prices), rel=0.05)


def test_only_a_schedule_whose_last_stage_talks_to_the_first_has_a_price_for_that():
    assert not any(priced(4).wrap)
    assert priced(4, schedule="Interleaved1F1B").wrap[0] > 0


def test_the_first_stages_sum_is_the_one_that_nothing_hides():
    prices = priced(4, data=4)

    assert prices.ring[0][0] > prices.ring[3][0]
    assert not any(priced(4).ring[0])


def test_a_wider_domain_never_costs_less_whatever_its_links():
    odd = Network(levels=("pod", "leaf", "node"), links=(FAST, SLOW, PORT, FAST))
    prices = prices_of(*planned(4), odd)

    for price in (*prices.chain, *prices.ring, prices.wrap):
        assert list(price) == sorted(price, reverse=True)
        assert price[-1] == 0


def test_many_boundaries_are_priced_between_some(monkeypatch):
    monkeypatch.setattr("pipelinejob.placement.prices._EFFORT", 20_000)
    plan, profile = planned(16)
    links = closest(16, 1)
    prices = prices_of(plan, profile, NETWORK)

    for boundary in (0, 5, 14):
        slow = replace(links, hops={**links.hops, (boundary, boundary + 1): SLOW})
        longer = step_s(plan, profile, slow) - step_s(plan, profile, links)
        assert prices.chain[boundary][0] == pytest.approx(longer, rel=0.1)


def test_a_jobs_price_is_that_of_its_dearest_chain_and_its_dearest_ring():
    prices = replace(
        crossing_prices(3, 2), ring=((5.0, 2.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0)), wrap=(0.5, 0.25, 0.0)
    )
    near = (("a", "n0"), ("a", "n0"), ("a", "n1"))
    far = (("a", "n2"), ("b", "n3"), ("b", "n3"))

    assert prices.chain_s(near) == 1 + 0.25
    assert prices.chain_s(far) == 3 + 1 + 0.5
    assert prices.penalty_s([near]) == 1.25
    assert prices.penalty_s([near, far]) == 4.5 + 2.0


def test_a_ring_is_as_wide_as_the_closest_domain_that_holds_all():
    assert ring_depth([("a", "x", "1"), ("a", "x", "2"), ("a", "y", "3")]) == 1
    assert common_depth(("a", "x", "1"), ("a", "x", "1")) == 3


def test_links_are_those_of_the_levels_unless_a_profile_states_them():
    nodes = [
        NodeInfo(name=f"n{i}", labels={"example.com/pod": f"{i // 4}", "example.com/leaf": f"{i // 2}"})
        for i in range(8)
    ]
    levels = (
        ProfileLevel(name="pod", keys=("example.com/pod",), link=Link(bytes_per_second=1e9, latency_seconds=1e-3)),
        ProfileLevel(name="leaf", keys=("example.com/leaf",)),
    )
    profile = TopologyProfileSpec(levels=levels, cluster_link=Link(kind="ethernet-10"))
    known = hardware.default()

    found = network.of(Topology.of(nodes, "ours", profiles={"ours": profile}), known, known.devices["H100-SXM"])

    assert found.levels == ("pod", "leaf", "node")
    assert found.links[0] == known.links["ethernet-10"]
    assert (found.links[1].latency_s, found.links[1].bytes_per_s) == (1e-3, 1e9)
    assert found.links[3] == known.links[known.devices["H100-SXM"].link]


def test_a_link_kind_that_nobody_described_is_told():
    nodes = [NodeInfo(name="n0", labels={"example.com/pod": "a"})]
    levels = (ProfileLevel(name="pod", keys=("example.com/pod",), link=Link(kind="carrier-pigeon")),)
    topology = Topology.of(nodes, "ours", profiles={"ours": TopologyProfileSpec(levels=levels)})

    with pytest.raises(hardware.HardwareError, match="names the link kind carrier-pigeon; use one of "):
        network.of(topology, hardware.default())
