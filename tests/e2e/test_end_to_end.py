"""The whole product on real nodes: chart, operator in its own pod, trainer pods of the trainer image, Prometheus.

One story, told in order by tests that build on each other: installing, training through a killed
stage, what Prometheus saw, suspending and resuming, making way for a higher priority, deleting,
and an image that is not there.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest

import nodes
from support.api_server.podhistory import Pod, PodHistory, last_words
from support.local.processes import free_ports, wait_until
from support.real_nodes import dashboards_as_code as dashboards
from support.real_nodes import grafana_drawing as grafana
from support.real_nodes.helm import helm
from support.real_nodes.scraping import configuration, discover, get, query
from support.real_nodes.team_jobs import (
    DEVICE,
    GANGS,
    LABEL_JOB,
    NAMESPACE,
    apply_job,
    containers,
    devices_held,
    events,
    example,
    gang,
    is_arriving,
    job,
    kill,
    on_devices,
    patch,
    phases,
    pods,
    priority_class,
    small,
    wait_for,
)

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "build" / "dashboards"


@pytest.fixture(scope="module")
def prometheus(cluster: nodes.Cluster, operator: str) -> Iterator[str]:
    """A real Prometheus that scrapes operator and trainer pods each second; gives its address."""
    (port,) = free_ports(1)
    folder = cluster.folder / "prometheus"
    folder.mkdir()
    targets = folder / "targets.json"
    targets.write_text("[]")
    (folder / "prometheus.yml").write_text(json.dumps(configuration(targets)))
    stopped = threading.Event()
    discovery = threading.Thread(target=discover, args=(cluster, targets, stopped))
    flags = [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    process = cluster.start_process("prometheus", ["/usr/bin/prometheus", *flags])
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: get(f"{url}/-/ready"), "Prometheus is ready")
    discovery.start()
    yield url
    stopped.set()
    discovery.join()
    process.stop()


@pytest.fixture
def devices(cluster: nodes.Cluster) -> Iterator[None]:
    """One device on each node while the test lasts: room for one gang of two stages."""
    for node in cluster.nodes:
        cluster.set_extended_resource(node.name, DEVICE, 1)
    yield
    for node in cluster.nodes:
        cluster.set_extended_resource(node.name, DEVICE, 0)


@pytest.fixture(scope="module")
def too_large(cluster: nodes.Cluster, team: str) -> Iterator[str]:
    """A job that waits for more than there is, as long as panels are looked at."""
    manifest = example(name="too-large", steps=10, interval=10)
    manifest["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "64"
    apply_job(cluster, manifest)
    yield "too-large"
    cluster.server.kubectl("delete", "pj", "too-large", "-n", team, "--ignore-not-found")


def test_the_example_trains_to_its_end_though_a_stage_is_killed(
    cluster: nodes.Cluster, team: str, prometheus: str
) -> None:
    apply_job(cluster, example(steps=40, interval=10))
    apply_job(cluster, small(name="beside", steps=40, interval=10))
    wait_for(cluster, "stdlib-gpt", lambda status: status.get("lastCheckpointStep", 0) >= 10, "a checkpoint")
    first = job(cluster, "stdlib-gpt")["status"]
    assert {stage["node"] for stage in first["stages"]} == {"node-1", "node-2"}

    kill(cluster, "stdlib-gpt-r0-s2")
    wait_for(cluster, "stdlib-gpt", lambda status: status["restarts"] == 1, "the killed stage counts as a restart")
    wait_for(cluster, "stdlib-gpt", lambda status: status["state"] == "Succeeded", "the end")

    last = job(cluster, "stdlib-gpt")["status"]
    assert (last["step"], last["restarts"], last["attempt"]) == (40, 1, first["attempt"] + 1)
    # Better than a guess among all bytes, and then better still.
    assert float(last["loss"]) < float(first["loss"]) < math.log(256)
    reasons = events(cluster, "stdlib-gpt")
    assert any("killed" in text.lower() or "137" in text for text in reasons), reasons


def test_a_killed_stage_alone_is_replaced_and_the_others_containers_never_restart(
    cluster: nodes.Cluster, team: str
) -> None:
    manifest = example(name="recovering", steps=20, interval=1000)
    manifest["spec"]["recovery"] = {"inPlace": True}
    apply_job(cluster, manifest)
    wait_for(cluster, "recovering", lambda status: status.get("step", 0) >= 3, "some steps")
    before = containers(cluster, "recovering")

    kill(cluster, "recovering-r0-s1")
    wait_for(cluster, "recovering", lambda status: status["recovery"]["incarnation"] == 2, "the gang meets again")
    after = containers(cluster, "recovering")
    wait_for(cluster, "recovering", lambda status: status["state"] == "Succeeded", "the end")

    assert {pod for pod in before if before[pod] != after[pod]} == {"recovering-r0-s1"}
    assert {count for *_, count in after.values()} == {0}
    assert {pod: uid for pod, (uid, *_) in containers(cluster, "recovering").items()} == {
        pod: uid for pod, (uid, *_) in after.items()
    }
    status = job(cluster, "recovering")["status"]
    assert (status["step"], status["attempt"], status["restarts"], status["recovery"]["replacements"]) == (20, 1, 0, 1)
    # There is no checkpoint before the last step: only memory can have carried the steps.
    logs = cluster.server.kubectl("logs", "-n", NAMESPACE, "recovering-r0-s3")
    assert "rank 1 takes over the copy that rank" in logs, logs
    assert "from memory" in logs, logs


def test_prometheus_saw_operator_and_every_stage(cluster: nodes.Cluster, prometheus: str) -> None:
    assert (
        query(prometheus, 'count(count by (stage) (max_over_time(pipelinejob_step{pipelinejob="stdlib-gpt"}[30m])))')
        == 4
    )
    assert query(prometheus, 'max(max_over_time(pipelinejob_loss{pipelinejob="stdlib-gpt"}[30m]))') > 2
    assert query(prometheus, 'sum(max_over_time(pipelinejob_stage_seconds_total{state="forward"}[30m]))') > 0
    assert query(prometheus, "sum(max_over_time(controller_runtime_reconcile_total[30m]))") > 0


def test_a_job_that_fits_nowhere_says_so_and_prometheus_sees_why(
    cluster: nodes.Cluster, too_large: str, prometheus: str
) -> None:
    wait_for(cluster, too_large, lambda status: status.get("state") == "Waiting", "it waits")
    seen = 'sum(pipelinejob_waiting_reason{pipelinejob="too-large", reason="NeverFits"}) or vector(0)'
    wait_until(lambda: query(prometheus, seen) == 1, "Prometheus saw why")
    placed = next(each for each in job(cluster, too_large)["status"]["conditions"] if each["type"] == "Placed")

    assert "64 cpu" in placed["message"]


@pytest.mark.parametrize(("panel", "expression"), dashboards.of_training(dashboards.panel_queries()))
def test_a_panel_shows_what_was_measured(prometheus: str, panel: str, expression: str) -> None:
    asked = dashboards.filled_in(expression, namespace=NAMESPACE, job="stdlib-gpt", interval="20s")
    now = time.time()
    span = {"query": asked, "start": now - 1800, "end": now, "step": 5}
    answer = json.loads(get(f"{prometheus}/api/v1/query_range?{urllib.parse.urlencode(span)}"))

    assert answer["data"]["result"], f"{panel}: no data for {asked}"


@pytest.mark.parametrize("name", dashboards.of_training(dashboards.boards()))
def test_grafanas_types_know_every_field_of_a_dashboard(name: str) -> None:
    board = dashboards.boards()[name]

    assert grafana.type_errors(board) == []
    assert "style" in grafana.type_errors({**board, "style": "dark"})[0]


@pytest.mark.parametrize("name", dashboards.of_training(dashboards.boards()))
@pytest.mark.usefixtures("too_large")
def test_grafanas_panels_draw_two_jobs_beside_each_other(cluster: nodes.Cluster, prometheus: str, name: str) -> None:
    wait_for(cluster, "beside", lambda status: status["state"] == "Succeeded", "the end")
    PICTURES.mkdir(parents=True, exist_ok=True)
    now = time.time()
    window = grafana.Window(url=prometheus, start=now - 1800, end=now, rate_interval="20s")
    chosen = {"namespace": (NAMESPACE,), "pipelinejob": ("stdlib-gpt", "beside")}

    drawn = grafana.draw(dashboards.boards()[name], window, chosen, picture=PICTURES / name.replace("json", "png"))

    assert [panel.title for panel in drawn if not panel.lines] == []
    for panel in drawn:
        names = [line.name for line in panel.lines]
        assert len({*names}) == len(names), f"{panel.title}: {names}"
        assert [line.name for line in panel.lines if (line.dash == "dash") != ("(predicted)" in line.name)] == []
    if name == "pipelinejob.json":
        assert_stages_stand_by_job([panel for panel in drawn if panel.title == "Utilization of each stage"])
        assert_predictions_have_the_colour_of_their_stage(drawn)


def assert_stages_stand_by_job(utilization: list[grafana.Drawn]) -> None:
    assert [[line.name for line in panel.lines] for panel in utilization] == [
        [f"stdlib-gpt: stage {stage}, replica 0" for stage in range(4)],
        [f"beside: stage {stage}, replica 0" for stage in range(2)],
    ]


def assert_predictions_have_the_colour_of_their_stage(drawn: tuple[grafana.Drawn, ...]) -> None:
    for panel in drawn:
        if panel.title.startswith("Bubble of each stage"):
            measured = {line.name.partition(",")[0]: line.color for line in panel.lines if line.dash == "solid"}
            predicted = {line.name.partition(" (")[0]: line.color for line in panel.lines if line.dash == "dash"}
            assert predicted == measured


def test_helm_test_finds_the_operator_at_work(cluster: nodes.Cluster, operator: str) -> None:
    said = helm(cluster, "test", "pj", f"--namespace={operator}", "--timeout=240s")

    assert "Phase:          Succeeded" in said


def test_the_operator_was_refused_nothing(cluster: nodes.Cluster, prometheus: str) -> None:
    """The chart grants every right that was used; test_chart.py sees that it grants few."""
    answered = "sum(max_over_time(rest_client_requests_total{code=~'%s'}[30m])) or vector(0)"
    assert query(prometheus, answered % "200") > 0
    assert query(prometheus, answered % "401|403") == 0


def test_suspending_releases_everything_and_resuming_goes_on(cluster: nodes.Cluster, team: str) -> None:
    apply_job(cluster, example(name="pausing", steps=30, interval=1000))
    wait_for(cluster, "pausing", lambda status: status.get("step", 0) >= 3, "some steps")

    patch(cluster, "pausing", {"spec": {"suspend": True}})
    wait_for(cluster, "pausing", lambda status: status["state"] == "Suspended", "suspension")
    saved = job(cluster, "pausing")["status"]["lastCheckpointStep"]
    assert saved >= 3
    # Their processes have ended; the kubelet may still be removing the last of them.
    wait_until(lambda: pods(cluster, "pausing") == [], "the pods are gone")

    patch(cluster, "pausing", {"spec": {"suspend": False}})
    wait_for(cluster, "pausing", lambda status: status["state"] == "Training", "training again")
    wait_for(cluster, "pausing", lambda status: status["state"] == "Succeeded", "the end")
    ended = job(cluster, "pausing")["status"]
    assert (ended["step"], ended["restarts"]) == (30, 0)
    # Only the checkpoint made on the way out can have carried the steps: the interval is longer
    # than the job.
    logs = cluster.server.kubectl("logs", "-n", NAMESPACE, "pausing-r0-s3")
    first = re.search(r"step (\d+)/30", logs)
    assert first is not None, logs
    assert int(first[1]) > saved, logs


def test_a_gang_makes_way_whole_and_goes_on_from_the_step_that_it_saved(
    cluster: nodes.Cluster, team: str, devices: None
) -> None:
    cluster.server.apply(priority_class("training-low", 10), priority_class("training-high", 1000))
    with PodHistory(cluster.server, NAMESPACE) as history:
        apply_job(cluster, on_devices(name="modest", steps=40, priority="training-low"))
        wait_for(cluster, "modest", lambda status: status.get("step", 0) >= 3, "some steps")
        first = job(cluster, "modest")["status"]

        apply_job(cluster, on_devices(name="urgent", steps=5, priority="training-high"))
        wait_for(cluster, "modest", lambda status: status.get("lastCheckpointStep"), "a checkpoint on the way out")
        left = job(cluster, "modest")["status"]
        for name in ("urgent", "modest"):
            wait_for(cluster, name, lambda status: status["state"] == "Succeeded", "the end")
        wait_until(lambda: [*phases([*history.moments()][-1])] == ["Succeeded"] * 4, "the watch has told all")

    assert (left["state"], left["preemptedBy"], left["preemptions"]) == ("Waiting", "team/urgent", 1)
    saved = left["lastCheckpointStep"]
    assert saved >= first["step"] >= 3
    # Only that checkpoint can have carried the steps: the interval is longer than the job.
    logs = cluster.server.kubectl("logs", "-n", NAMESPACE, "modest-r0-s1")
    assert f"resumed from the checkpoint of step {saved}, " in logs
    assert re.findall(r"step (\d+)/40", logs)[0] == str(saved + 1)
    ended = job(cluster, "modest")["status"]
    assert (ended["step"], ended["attempt"], ended["preemptions"]) == (40, first["attempt"] + 1, 1)
    assert (ended["restarts"], ended["disruptions"]) == (0, 0)
    assert_whole_gangs_one_after_the_other([*history.moments()], saved=saved)


def assert_whole_gangs_one_after_the_other(moments: list[dict[str, Pod]], *, saved: int) -> None:
    # Devices of modest and of urgent, after each change of a pod: pods come and go singly, so each
    # number shows.
    assert [each for each, _ in groupby(map(devices_held, moments))] == [
        *[(0, 0), (1, 0), (2, 0), (1, 0)],
        *[(0, 0), (0, 1), (0, 2), (0, 1)],
        *[(0, 0), (1, 0), (2, 0), (1, 0), (0, 0)],
    ]
    # No pod was let go to its node before all of its gang were there.
    assert {len(gang(there, name)) for there in moments for name in GANGS if is_arriving(gang(there, name))} == {2}
    words = {last_words(pod) or "" for there in moments for pod in gang(there, "modest")}
    on_leaving = [each for each in words if "asked to stop" in each]
    assert on_leaving
    assert all(f"a checkpoint of step {saved} was written" in each for each in on_leaving)


def test_pods_that_the_cluster_bound_are_numbered_and_train(cluster: nodes.Cluster, team: str) -> None:
    manifest = example(name="late", steps=5, interval=1000)
    manifest["spec"]["scheduling"] = {"binding": "Late"}
    apply_job(cluster, manifest)

    wait_for(cluster, "late", lambda status: status["state"] == "Succeeded", "the end")

    stages = job(cluster, "late")["status"]["stages"]
    assert {each["pod"] for each in stages} == {f"late-p{ordinal}" for ordinal in range(4)}
    nodes_in_order = [each["node"] for each in stages]
    assert sum(one != other for one, other in pairwise(nodes_in_order)) == len(set(nodes_in_order)) - 1
    labels = {
        pod["metadata"]["name"]: pod["metadata"]["labels"]["pipelinejob.io/stage"] for pod in pods(cluster, "late")
    }
    assert labels == {each["pod"]: str(each["stage"]) for each in stages}


def test_deleting_leaves_nothing(cluster: nodes.Cluster, team: str) -> None:
    apply_job(cluster, example(name="unwanted", steps=1000, interval=1000))
    wait_for(cluster, "unwanted", lambda status: status["state"] == "Training", "training")

    cluster.server.kubectl("delete", "pj", "-n", NAMESPACE, "unwanted", "--timeout=240s")

    kinds = "pods,services,configmaps,pipelinejobs"
    wait_until(
        lambda: cluster.server.get(kinds, "-n", NAMESPACE, "-l", f"{LABEL_JOB}=unwanted")["items"] == [],
        "nothing is left",
        timeout_s=240,
        poll_s=1,
    )


def test_an_image_that_cannot_be_pulled_is_said_clearly(cluster: nodes.Cluster, team: str) -> None:
    image = "localhost/nobody/has-this:1"
    manifest = example(name="no-image", steps=10, interval=10)
    manifest["spec"]["template"]["spec"]["containers"][0]["image"] = image
    apply_job(cluster, manifest)

    def says_it(status: dict[str, Any]) -> bool:
        said = [each.get("message", "") for each in (*status["conditions"], *status.get("stages", ()))]
        return any(image in text for text in said)

    wait_for(cluster, "no-image", says_it, "a message that names the image")
    cluster.server.kubectl("delete", "pj", "-n", NAMESPACE, "no-image", "--timeout=240s")
