"""`pipelinejob line`: who waits for room, in the operator's own order."""

import json

import pytest

from pipelinejob_operator.admission.line.priority import Priorities
from pipelinejob_operator.cli.line import in_line
from pipelinejob_operator.kube import reading
from support.manifests.jobs import job, priority_class


def stored(name, created, *, placed=None, **spec):
    manifest = job(name, **spec)
    metadata = {**manifest["metadata"], "uid": name, "creationTimestamp": created}
    conditions = [{"type": "Placed", "status": "False", "reason": placed, "lastTransitionTime": created, "message": ""}]
    return {**manifest, "metadata": metadata, "status": {"conditions": conditions} if placed else {}}


JOBS = (
    stored("younger", "2026-01-01T00:00:02Z", placed="FarBack"),
    stored("older", "2026-01-01T00:00:01Z", placed="NoRoom"),
    stored("urgent", "2026-01-01T00:00:03Z", scheduling={"priorityClassName": "high"}),
    stored("hopeless", "2026-01-01T00:00:00Z", placed="NeverFits"),
    stored("paused", "2026-01-01T00:00:00Z", suspend=True),
)
CLASSES = (priority_class("high", 10),)


@pytest.fixture
def cluster(monkeypatch):
    async def read_line(kubeconfig, context):
        return JOBS, CLASSES

    monkeypatch.setattr(reading, "read_line", read_line)


def test_jobs_stand_by_priority_then_age_and_those_that_keep_nobody_waiting_do_not():
    standing = in_line(JOBS, Priorities.read(CLASSES))

    assert [(each.place, each.job, each.priority, each.reason) for each in standing] == [
        (1, "default/urgent", 10, ""),
        (2, "default/older", 0, "NoRoom"),
        (3, "default/younger", 0, "FarBack"),
    ]


def test_one_job_is_shown_with_the_head(call, cluster):
    result = call("line", "default/younger", "--kubeconfig", "any", "-o", "json")

    assert [(each["place"], each["job"]) for each in json.loads(result.out)] == [
        (1, "default/urgent"),
        (3, "default/younger"),
    ]


def test_all_are_shown_as_a_table(call, cluster):
    head, *_ = [line for line in call("line", "--kubeconfig", "any").out.splitlines() if "default/" in line]

    assert head.split() == ["1", "default/urgent", "10", "2026-01-01T00:00:03Z"]


def test_a_job_that_does_not_wait_in_line_is_named(call, cluster):
    result = call("line", "default/paused", "--kubeconfig", "any")

    assert result.code == 2
    assert "default/paused: no job of this name waits in line" in result.err
