"""TopologyProfiles on the command line: what the CRD refuses, and what a good one means."""

import pytest

from pipelinejob.base.errors import InvalidManifestError
from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.spec.network.topology_profile import Link, MissingLabels
from pipelinejob_operator.objects.topology_profiles import profiles_of
from pipelinejob_operator.validation.topology_profiles import validate_profile
from support.manifests.profilesamples import BAD, GOOD, profile


def test_a_good_one_is_read_with_its_defaults():
    name, spec = validate_profile(GOOD)

    assert name == "our-cluster"
    assert [level.name for level in spec.levels] == ["superpod", "leaf", "rack"]
    assert spec.levels[1].keys == ("example.com/leaf", "example.com/old-leaf")
    assert [level.optional for level in spec.levels] == [False, False, True]
    assert spec.levels[0].link == Link(kind="infiniband-ndr")
    assert spec.cluster_link == Link(bytes_per_second=1.25e8, latency_seconds=0.03)
    assert spec.missing_labels is MissingLabels.SEPARATE


@pytest.mark.parametrize("bad", BAD, ids=[bad.claim for bad in BAD])
def test_a_bad_one_is_refused_with_its_place(bad):
    with pytest.raises(InvalidManifestError) as error:
        validate_profile(bad.manifest)

    assert any(bad.path == each.path and bad.problem in each.problem for each in error.value.errors), error.value


def test_it_is_found_by_its_labels_before_any_preset():
    profiles = profiles_of([GOOD])
    node = NodeInfo(
        name="n",
        labels={"example.com/superpod": "A", "example.com/old-leaf": "1", "backend.coreweave.cloud/superpod": "c"},
    )

    topology = Topology.of([node], profiles=profiles)

    assert topology.profile == "our-cluster"
    assert topology.paths["n"] == ("A", "1", "n")
    assert topology.link == Link(bytes_per_second=1.25e8, latency_seconds=0.03)
    assert Topology.of([node], "coreweave", profiles=profiles).paths["n"] == ("c", "n")


def test_one_that_cannot_be_read_counts_as_absent():
    assert profiles_of([{"metadata": {"name": "odd"}, "spec": {"tiers": 3}}, profile(name="good")]).keys() == {"good"}
