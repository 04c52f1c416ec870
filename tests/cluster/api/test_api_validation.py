"""The table of tests/contract/api/test_validation.py, put to a real API server: its verdict is the command line's."""
# ruff: noqa: E501  # tables read best with a case a line

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelinejob.base.errors import InvalidManifestError
from pipelinejob.spec.crds.crd import root_schema
from pipelinejob_operator.validation.celrules import ABSENT
from pipelinejob_operator.validation.manifest_files import load_manifests
from pipelinejob_operator.validation.validate import _errors, defaulted, validate
from support.api_server.apiclient import BAD_REQUEST, CREATED, JOBS, UNPROCESSABLE, Client
from support.api_server.apiserver import ApiServer
from support.examples import examples
from support.local.processes import wait_until
from support.manifests.badinput import ENVELOPES, FIELDS, GOOD, RULES, Bad
from support.manifests.building import fields, manifest, values, with_value
from support.manifests.changing import CHANGES, Change
from support.manifests.unseen import UNSEEN

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))


@pytest.fixture(scope="module")
def client(api_server: ApiServer) -> Client:
    return Client(api_server)


def test_the_crd_is_structural_and_established(api_server):
    crd = api_server.get("crd", "pipelinejobs.pipelinejob.io")
    conditions = {each["type"]: each["status"] for each in crd["status"]["conditions"]}

    assert conditions == {"NamesAccepted": "True", "Established": "True"}


@pytest.mark.parametrize("bad", RULES, ids=[bad.claim for bad in RULES])
def test_the_server_applies_the_very_same_rule(bad: Bad, client):
    with pytest.raises(InvalidManifestError) as caught:
        validate(manifest(bad.changes))

    code, answer = client.create(manifest(bad.changes))

    assert code == UNPROCESSABLE
    causes = [(cause["field"], cause["message"]) for cause in answer["details"]["causes"]]
    for error in caught.value.errors:
        assert any(field == error.path and message.endswith(error.problem) for field, message in causes), causes


@pytest.mark.parametrize("bad", FIELDS, ids=[bad.claim for bad in FIELDS])
def test_the_server_refuses_the_same_field(bad: Bad, client):
    code, answer = client.create(manifest(bad.changes))

    assert code in {BAD_REQUEST, UNPROCESSABLE}
    last_word = re.split(r"[.\[]", bad.path)[-1] if "[" not in bad.path else bad.path
    assert last_word in answer["message"]


@pytest.mark.parametrize("bad", ENVELOPES, ids=[bad.claim for bad in ENVELOPES])
def test_the_server_refuses_what_is_no_pipelinejob(bad: Bad, client):
    code, _ = client.create(manifest(bad.changes))

    assert code in {BAD_REQUEST, UNPROCESSABLE}


@pytest.mark.parametrize("bad", UNSEEN, ids=[bad.claim for bad in UNSEEN])
def test_the_server_does_not_look_into_pod_templates(bad: Bad, client):
    """That is why the command line and the operator do."""
    code, _ = client.create(manifest(bad.changes))

    assert code == CREATED


@pytest.mark.parametrize("changes", GOOD.values(), ids=GOOD)
def test_the_server_stores_what_the_command_line_reads(changes, client):
    code, stored = client.create(manifest(changes))

    assert code == CREATED
    assert stored["spec"] == defaulted(manifest(changes))["spec"]
    assert validate(stored) == validate(manifest(changes))


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.name for path in EXAMPLES])
def test_every_example_is_accepted_by_both(path, api_server):
    jobs = [each for each in load_manifests(path) if each["kind"] == "PipelineJob"]

    assert jobs
    assert all(validate(job) for job in jobs)
    assert "created (server dry run)" in api_server.kubectl("create", "--dry-run=server", "-f", path)


def test_kubectl_get_shows_how_a_job_does(client, api_server):
    _, stored = client.create(manifest({"metadata.name": "shown"}), dry_run=False)
    stored["status"] = {
        "state": "Training", "stagesReady": "4/4", "step": 120, "progress": "40%", "loss": "2.431", "bubble": "27.3%",
        "restarts": 1, "nodes": "4: a, b, c, d", "tokensPerSecond": "18250",
        "placement": {"crossed": "leaf 1, node 3", "penalty": "1.2%", "leastPenalty": "0.4%", "roomLeft": {"leaf": 5}},
    }  # fmt: skip
    client.send("PUT", f"{JOBS}/shown/status", stored)

    narrow, wide = (api_server.kubectl("get", "pj", "shown", *flags).splitlines() for flags in ((), ("-o", "wide")))

    client.send("DELETE", f"{JOBS}/shown")
    assert narrow[0].split() == ["NAME", "STATE", "STAGES", "STEP", "PROGRESS", "LOSS", "BUBBLE", "RESTARTS", "AGE"]
    assert narrow[1].split()[:-1] == ["shown", "Training", "4/4", "120", "40%", "2.431", "27.3%", "1"]
    assert wide[0].split()[-7:] == ["SCHEDULE", "NODES", "CROSSINGS", "PENALTY", "TOKENS/S", "TTFT", "TPOT"]
    assert re.search(r"1F1B\s+4: a, b, c, d\s+leaf 1, node 3\s+1\.2%\s+18250\s*$", wide[1])


@settings(
    max_examples=examples(300),
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(path=st.sampled_from([path for path, _ in fields("spec", root_schema()["properties"]["spec"])]), value=values())
def test_whatever_stands_in_a_field_gets_the_same_verdict_from_both(path, value, client):
    made = with_value(path, value)

    code, answer = client.create(made)

    ours = [str(error) for error in _errors(made, ABSENT)]
    assert (code == CREATED) == (not ours), (answer.get("message"), ours)


@pytest.mark.parametrize("change", CHANGES, ids=[change.claim for change in CHANGES])
def test_the_server_allows_a_change_where_it_can_be_honoured(change: Change, client):
    name = re.sub(r"[^a-z]+", "-", change.claim)
    code, stored = client.create(manifest({"metadata.name": name} | dict(change.before)), dry_run=False)
    assert code == CREATED, stored
    update = manifest({"metadata.name": name} | dict(change.after))
    update["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"]

    code, answer = client.send("PUT", f"{JOBS}/{name}", update)

    client.send("DELETE", f"{JOBS}/{name}")
    if change.path is None:
        assert code == 200
    else:
        assert code == UNPROCESSABLE
        assert [cause["field"] for cause in answer["details"]["causes"]] == [change.path]
        assert change.words in answer["message"]


@pytest.mark.parametrize(
    ("after", "path"), [({"spec.suspend": True}, "spec.suspend"), ({"spec.training.steps": 999}, "spec.training")]
)
def test_a_finished_job_is_never_run_again(after, path, client):
    name = "finished-" + path.replace(".", "-")
    _, stored = client.create(manifest({"metadata.name": name}), dry_run=False)
    stored["status"] = {"completionTime": "2026-01-02T03:04:05Z"}
    code, finished = client.send("PUT", f"{JOBS}/{name}/status", stored)
    assert code == 200, finished
    update = manifest({"metadata.name": name} | after)
    update["metadata"]["resourceVersion"] = finished["metadata"]["resourceVersion"]

    code, answer = client.send("PUT", f"{JOBS}/{name}", update)

    client.send("DELETE", f"{JOBS}/{name}")
    assert code == UNPROCESSABLE
    assert path in {cause["field"] for cause in answer["details"]["causes"]}
    assert "the job has ended and is never run again" in answer["message"]


@pytest.mark.parametrize("part", ["spec", "status"])
def test_kubectl_explains_every_field(part, api_server):
    index = "/openapi/v3"  # published a moment after the CRD is established
    wait_until(lambda: "pipelinejob.io/v1alpha1" in api_server.kubectl("get", "--raw", index), "the API is described")
    model = json.loads(api_server.kubectl("get", "--raw", f"{index}/apis/pipelinejob.io/v1alpha1"))
    job = model["components"]["schemas"]["io.pipelinejob.v1alpha1.PipelineJob"]
    fields = dict(described(part, job["properties"][part]))

    assert [path for path, text in fields.items() if not text] == []
    assert len(fields) > 30
    listed = api_server.kubectl("explain", f"pipelinejob.{part}", "--recursive")
    assert all(path.split(".")[-1] in listed for path in fields if path != part)


def test_kubectl_reads_a_file_as_the_command_line_does(api_server, tmp_path):
    """Only the API's own JSON travels, so both readers must make the same of YAML's many spellings."""
    path = tmp_path / "job.yaml"
    path.write_text(
        yaml.safe_dump(manifest()) + "  template:\n" + "".join(f"    k{n}: {each}\n" for n, each in enumerate(SCALARS))
    )

    read = api_server.kubectl("create", "--dry-run=client", "-f", path, "-o", "json")

    assert json.loads(read)["spec"]["template"] == load_manifests(path)[0]["spec"]["template"]


def test_a_job_of_the_largest_size_fits_into_the_store_with_its_status(client):
    changes = {
        "metadata.name": "largest",
        "spec.model.gpt.numLayers": 1000,
        "spec.parallelism": {"pipeline": 1000, "data": 2},
    }
    _, stored = client.create(manifest(changes), dry_run=False)
    stored["status"] = {
        "stages": [
            {
                "replica": replica, "stage": stage, "pod": f"largest-r{replica}-s{stage}", "node": f"node-{stage}.example.com",
                "path": f"zone-a/spine-1/leaf-{stage // 8}", "ready": True, "restarts": 0, "step": 123456,
                "utilization": "71.2%", "bubble": "27.3%", "memoryBytes": 123456789012,
            }
            for replica in range(2)
            for stage in range(1000)
        ]
    }  # fmt: skip

    code, answer = client.send("PUT", f"{JOBS}/largest/status", stored)

    client.send("DELETE", f"{JOBS}/largest")
    assert code == 200, answer


SCALARS = (
    "3e-3", "1e3", "1.5", "1.0", "-0.5", ".5", "5.", "1_000", "010", "0x1F", "0o17", "0b11", "12:30", "1:30:45", "2026-11-21",
    "yes", "no", "on", "Off", "true", "FALSE", "y", "n", "~", "null", "", "'7'", '"3e-3"', "1F1B", "1e", "0.1.2", "+5", "089",
    "1e-10", "123456789012", "1E5", "-1e2", "+.5e1", "=", "<", "0.0",
)  # fmt: skip


def described(path: str, schema: dict[str, Any]):
    """Return every field of a schema with its description."""
    whole = {**schema, **next(iter(schema.get("allOf", [])), {})}
    yield path, whole.get("description", "")
    for name, field in whole.get("properties", {}).items():
        yield from described(f"{path}.{name}", field)
    for name, field in whole.get("items", {}).get("properties", {}).items():
        yield from described(f"{path}.{name}", field)
