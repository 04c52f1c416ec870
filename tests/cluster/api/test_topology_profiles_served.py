"""TopologyProfiles on a real API server: it refuses what the command line refuses, and informers see what it keeps."""

import pytest

from support.api_server.apiclient import BAD_REQUEST, CREATED, UNPROCESSABLE, Client
from support.manifests.profilesamples import BAD, GOOD, profile

PROFILES = "apis/pipelinejob.io/v1alpha1/topologyprofiles"


@pytest.fixture(scope="module")
def client(api_server) -> Client:
    return Client(api_server)


def test_a_good_one_is_stored_with_its_defaults(client):
    code, stored = client.send("POST", PROFILES, GOOD, dry_run=True)

    assert code == CREATED, stored
    assert stored["spec"]["missingLabels"] == "Separate"
    assert [level["optional"] for level in stored["spec"]["levels"]] == [False, False, True]


@pytest.mark.parametrize("bad", BAD, ids=[bad.claim for bad in BAD])
def test_a_bad_one_is_refused_at_the_same_place(client, bad):
    code, answer = client.send("POST", PROFILES, bad.manifest, dry_run=True)

    assert code == UNPROCESSABLE, answer
    causes = [(cause["field"], cause["message"]) for cause in answer["details"]["causes"]]
    assert any(field == bad.path and bad.problem in message for field, message in causes), causes


def test_an_unknown_field_is_refused(client):
    code, answer = client.send("POST", PROFILES, profile(tiers=3), dry_run=True)

    assert code == BAD_REQUEST
    assert 'unknown field "spec.tiers"' in answer["message"]
