"""The local cluster behaves as a cluster does: gates, exit codes, last words, grace, owners; it leaves no process."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from pipelinejob.base import names
from pipelinejob.contract.progress import Phase
from pipelinejob_operator.cluster import ClusterError, ConflictError, InvalidError, Key, Object, Reference
from pipelinejob_operator.local.cluster import LocalCluster
from pipelinejob_operator.local.node.machine import Machine, read_machine
from pipelinejob_operator.local.runfolder import RunFolder
from support.local.local_pods import FAKE_TRAINER, PLAN, alive, job, pod, python
from support.local.processes import HANG_S

KEY = Key("default", "job")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


@pytest.fixture
async def cluster(folder: RunFolder) -> AsyncIterator[LocalCluster]:
    machine = Machine(hostname="here", cores=4, memory_bytes=2**30, gpus=("GPU-a", "GPU-b"), environment={})
    async with LocalCluster(folder, machine) as cluster:
        await cluster.apply(job())
        await cluster.apply(PLAN)
        yield cluster


def uid(cluster: LocalCluster) -> str:
    found = cluster.job(KEY)
    assert found
    return str(found["metadata"]["uid"])


def only_pod(cluster: LocalCluster) -> Object:
    (found,) = cluster.pods(KEY)
    return found


def reference(cluster: LocalCluster) -> Reference:
    found = only_pod(cluster)["metadata"]
    return Reference(kind="Pod", namespace=found["namespace"], name=found["name"], uid=found["uid"])


def terminated(found: Object) -> Object:
    (status,) = found["status"]["containerStatuses"]
    ended: Object = status["state"]["terminated"]
    return ended


async def until(condition: Callable[[], bool], *, timeout_s: float = HANG_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.02)


async def test_a_gated_pod_waits_and_runs_once_its_gate_is_lifted(cluster: LocalCluster) -> None:
    await cluster.apply(pod(uid(cluster), command=python(FAKE_TRAINER), gated=True))

    assert only_pod(cluster)["status"]["phase"] == "Pending"
    assert "nodeName" not in only_pod(cluster)["spec"]

    await cluster.apply(pod(uid(cluster), command=python(FAKE_TRAINER)))
    assert only_pod(cluster)["status"]["phase"] == "Running"
    assert only_pod(cluster)["spec"]["nodeName"] == "here"


async def test_a_pod_is_ready_when_its_readiness_probe_answers_and_then_tells_its_progress(
    cluster: LocalCluster,
) -> None:
    await cluster.apply(pod(uid(cluster), stage=1, command=python(FAKE_TRAINER)))
    assert not only_pod(cluster)["status"]["containerStatuses"][0]["ready"]

    await until(lambda: only_pod(cluster)["status"]["containerStatuses"][0]["ready"])
    progress = await cluster.progress(only_pod(cluster))

    assert progress is not None
    assert (progress.stage, progress.step, progress.phase) == (1, 3, Phase.TRAINING)


async def test_a_process_gets_the_pods_environment_turned_into_this_machines(
    cluster: LocalCluster, folder: RunFolder
) -> None:
    code = "import json, os; json.dump(dict(os.environ), open('/dev/stdout', 'w'))"
    await cluster.apply(pod(uid(cluster), command=python(code)))
    await until(lambda: only_pod(cluster)["status"]["phase"] == "Succeeded")

    seen = json.loads((folder.logs / "job-r0-s0.1.log").read_text())
    assert seen[names.ENV_PLAN] == str(folder.plan)
    assert seen[names.ENV_CHECKPOINTS] == str(folder.checkpoints / "default" / "job")
    assert seen[names.ENV_OUTPUT] == str(folder.root)
    assert seen[names.ENV_RENDEZVOUS].startswith("127.0.0.1:")
    assert seen[names.ENV_METRICS_PORT] != str(names.PORT_METRICS)
    assert (seen["ME"], seen["TRY"]) == ("job-r0-s0", "1")
    assert seen["OMP_NUM_THREADS"] == "4"
    assert folder.plan.read_text() == "{}"


async def test_all_stages_of_an_attempt_meet_at_one_address(cluster: LocalCluster, folder: RunFolder) -> None:
    code = "import os; print(os.environ['PIPELINEJOB_RENDEZVOUS'], end='')"
    for stage in range(2):
        await cluster.apply(pod(uid(cluster), stage=stage, command=python(code)))
    await until(lambda: all(found["status"]["phase"] == "Succeeded" for found in cluster.pods(KEY)))

    first, second = ((folder.logs / f"job-r0-s{stage}.1.log").read_text() for stage in range(2))
    assert first == second


async def test_the_exit_code_and_the_termination_log_become_the_pods_status(cluster: LocalCluster) -> None:
    code = "import os; open(os.environ['PIPELINEJOB_TERMINATION_LOG'], 'w').write('last words'); raise SystemExit(64)"
    await cluster.apply(pod(uid(cluster), command=python(code)))
    await until(lambda: only_pod(cluster)["status"]["phase"] == "Failed")

    assert terminated(only_pod(cluster))["exitCode"] == 64
    assert terminated(only_pod(cluster))["message"] == "last words"


async def test_without_last_words_the_end_of_the_log_says_why(cluster: LocalCluster) -> None:
    await cluster.apply(pod(uid(cluster), command=python("raise SystemExit('no such data')")))
    await until(lambda: only_pod(cluster)["status"]["phase"] == "Failed")

    assert terminated(only_pod(cluster))["exitCode"] == 1
    assert "no such data" in terminated(only_pod(cluster))["message"]


async def test_a_killed_process_ends_with_137(cluster: LocalCluster) -> None:
    await cluster.apply(pod(uid(cluster), command=python("import os; os.kill(os.getpid(), 9)")))
    await until(lambda: only_pod(cluster)["status"]["phase"] == "Failed")

    assert terminated(only_pod(cluster))["exitCode"] == 137


async def test_a_command_that_does_not_exist_is_named(cluster: LocalCluster) -> None:
    await cluster.apply(pod(uid(cluster), command=["no-such-trainer"]))
    await until(lambda: only_pod(cluster)["status"]["phase"] == "Failed")

    assert terminated(only_pod(cluster))["exitCode"] == 127
    assert "cannot start 'no-such-trainer'" in terminated(only_pod(cluster))["message"]


async def test_deleting_a_pod_stops_its_process_politely_and_then_forgets_it(
    cluster: LocalCluster, folder: RunFolder
) -> None:
    await cluster.apply(pod(uid(cluster), command=python(FAKE_TRAINER)))
    await until(lambda: only_pod(cluster)["status"]["containerStatuses"][0]["ready"])
    await cluster.delete(reference(cluster))

    assert all(found["metadata"].get("deletionTimestamp") for found in cluster.pods(KEY))
    await until(lambda: not cluster.pods(KEY))
    words = json.loads((folder.logs / "job-r0-s0.1.termination.json").read_text())
    assert words["reason"] == "Stopped"


async def test_a_process_that_ignores_the_request_is_killed_after_its_grace(
    cluster: LocalCluster, folder: RunFolder
) -> None:
    code = "import signal; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True)\nwhile True: signal.pause()"
    await cluster.apply(pod(uid(cluster), command=python(code), grace_s=1))
    await until(lambda: "deaf" in (folder.logs / "job-r0-s0.1.log").read_text())
    await cluster.delete(reference(cluster))

    await until(lambda: not cluster.pods(KEY))


async def test_a_delete_that_means_an_older_namesake_does_nothing(cluster: LocalCluster) -> None:
    await cluster.apply(pod(uid(cluster), command=python(FAKE_TRAINER), gated=True))
    await cluster.delete(Reference(kind="Pod", namespace="default", name="job-r0-s0", uid="of another time"))

    assert len(cluster.pods(KEY)) == 1


async def test_pods_of_another_owner_are_not_the_jobs(cluster: LocalCluster) -> None:
    await cluster.apply(pod("a stranger", command=python(FAKE_TRAINER), gated=True))

    assert cluster.pods(KEY) == ()
    assert len(cluster.all_pods()) == 1


async def test_a_status_written_over_a_newer_job_is_a_conflict(cluster: LocalCluster) -> None:
    stale = cluster.job(KEY)
    assert stale
    await cluster.write_status(stale, {"attempt": 1})

    with pytest.raises(ConflictError):
        await cluster.write_status(stale, {"attempt": 2})


async def test_the_job_and_its_status_survive_in_the_folder(cluster: LocalCluster, folder: RunFolder) -> None:
    found = cluster.job(KEY)
    assert found
    await cluster.write_status(found, {"attempt": 7})

    assert RunFolder(folder.root).read_job() == cluster.job(KEY)


async def test_a_changed_spec_is_a_new_generation_of_the_same_job(cluster: LocalCluster) -> None:
    before = uid(cluster)
    await cluster.apply(job(suspend=True))

    changed = cluster.job(KEY)
    assert changed
    assert (changed["metadata"]["uid"], changed["metadata"]["generation"]) == (before, 2)


async def test_each_stage_gets_gpus_of_its_own(cluster: LocalCluster, folder: RunFolder) -> None:
    code = "import os, signal; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); signal.pause()"
    for stage in range(2):
        wanted = pod(uid(cluster), stage=stage, command=python(code))
        wanted["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
        await cluster.apply(wanted)
    logs = [folder.logs / f"job-r0-s{stage}.1.log" for stage in range(2)]
    await until(lambda: all(log.exists() and log.read_text().endswith("\n") for log in logs))

    assert sorted(log.read_text().strip() for log in logs) == ["GPU-a", "GPU-b"]
    third = pod(uid(cluster), stage=2, command=python(code))
    third["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
    with pytest.raises(ClusterError, match="1 GPUs are wanted, 0 of 2 are free"):
        await cluster.apply(third)


async def test_leaving_the_cluster_ends_every_process_and_what_it_started(folder: RunFolder, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = (
        "import os, subprocess, signal\n"
        f"child = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}} ')\n"
        "signal.pause()"
    )
    async with LocalCluster(folder, read_machine()) as cluster:
        await cluster.apply(job())
        await cluster.apply(PLAN)
        await cluster.apply(pod(uid(cluster), command=python(code)))
        await until(lambda: pids.exists() and pids.read_text().endswith(" "))

    await until(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))


def test_stages_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    stage = f"import os, signal; open({str(pid_file)!r}, 'w').write(f'{{os.getpid()}} '); signal.pause()"
    parent_code = f"""
import asyncio, pathlib, sys
from pipelinejob_operator.local.node.stage_process import StageProcess
async def main():
    log = pathlib.Path({str(tmp_path / "log")!r})
    process = await StageProcess.start([sys.executable, "-c", {stage!r}], environment={{}}, log=log)
    await process.wait()
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", parent_code])
    deadline = time.monotonic() + HANG_S
    while not (pid_file.exists() and pid_file.read_text().endswith(" ")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    parent.send_signal(signal.SIGKILL)
    parent.wait()

    while alive(int(pid_file.read_text())):
        assert time.monotonic() < deadline, "the stage outlived its parent"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]},
            "env TOKEN: only `value`",
        ),
        ({"envFrom": [{"secretRef": {"name": "s"}}]}, "envFrom does not work without a cluster"),
    ],
)
async def test_what_only_a_cluster_has_is_refused_while_the_pod_is_gated(
    cluster: LocalCluster, change: dict[str, object], said: str
) -> None:
    wanted = pod(uid(cluster), command=python(FAKE_TRAINER), gated=True)
    wanted["spec"]["containers"][0].update(change)

    with pytest.raises(InvalidError, match=said):
        await cluster.apply(wanted)
    assert cluster.pods(KEY) == ()


@pytest.mark.parametrize(
    ("volume", "said"),
    [
        ({"name": "key", "secret": {"secretName": "s"}}, "volume key does not work without a cluster"),
        ({"name": "mine", "configMap": {"name": "mine"}}, "there is no config map mine"),
    ],
)
async def test_a_volume_that_only_a_cluster_has_is_refused(
    cluster: LocalCluster, volume: dict[str, object], said: str
) -> None:
    wanted = pod(uid(cluster), command=python(FAKE_TRAINER), gated=True)
    wanted["spec"]["volumes"].append(volume)

    with pytest.raises(InvalidError, match=said):
        await cluster.apply(wanted)


def begins_again(cluster: LocalCluster, folder: RunFolder, *, last: int) -> Object:
    """Build a pod whose process ends with 1 as long as it has written fewer lines than two, and then with `last`."""
    file = folder.root / "tries"
    code = (
        f"import sys; file = open({str(file)!r}, 'a+'); file.write('x\\n'); file.seek(0); "
        f"sys.exit(1 if len(file.read().split()) < 2 else {last})"
    )
    made = pod(uid(cluster), command=python(code))
    return {**made, "spec": {**made["spec"], "restartPolicy": "Always"}}


async def test_a_process_begins_again_in_its_pod_where_that_asks_for_it_but_not_after_a_users_error(
    cluster: LocalCluster, folder: RunFolder
) -> None:
    await cluster.apply(begins_again(cluster, folder, last=64))
    await until(lambda: only_pod(cluster)["status"]["phase"] == "Failed")

    (status,) = only_pod(cluster)["status"]["containerStatuses"]
    assert (folder.root / "tries").read_text().split() == ["x", "x"]
    assert status["restartCount"] == 1
    assert status["lastState"]["terminated"]["exitCode"] == 1
    assert terminated(only_pod(cluster))["exitCode"] == 64


async def test_a_pod_that_is_to_end_does_not_begin_again(cluster: LocalCluster, folder: RunFolder) -> None:
    await cluster.apply(begins_again(cluster, folder, last=1))
    await until(lambda: "waiting" in only_pod(cluster)["status"]["containerStatuses"][0]["state"])
    await cluster.delete(reference(cluster))

    await until(lambda: not cluster.pods(KEY))
