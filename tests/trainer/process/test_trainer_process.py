"""The parts of a stage's process: environment, last words, liveness, health, profile."""

import http.client
import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from pipelinejob.base import names
from pipelinejob.contract.plan import CostSource
from pipelinejob.contract.progress import ExitCode, Termination
from pipelinejob.costs.layers import Profile
from pipelinejob.spec.job import Model, Recovery
from pipelinejob_trainer.base.errors import PeerLostError, StoppedError, UserError
from pipelinejob_trainer.communication.liveness import Liveness, neighbours
from pipelinejob_trainer.process import stage_status, termination
from pipelinejob_trainer.process.config import check_place, read_config, read_plan
from pipelinejob_trainer.process.http_server import Ear, serve
from pipelinejob_trainer.process.stage_status import StageStatus
from pipelinejob_trainer.process.termination import ProcessExit
from pipelinejob_trainer.profile.profile import measure
from support.local.processes import HANG_S, free_ports, wait_until
from support.training.gangs import plan

ENVIRONMENT = {
    names.ENV_PLAN: "/plan.json",
    names.ENV_NAMESPACE: "default",
    names.ENV_JOB: "job",
    names.ENV_STAGE: "1",
    names.ENV_REPLICA: "0",
    names.ENV_ATTEMPT: "3",
    names.ENV_RENDEZVOUS: "job-r0-s0.job.default.svc:29500",
    names.ENV_CHECKPOINTS: "/checkpoints",
}


def test_the_environment_says_where_a_rank_stands() -> None:
    config = read_config(ENVIRONMENT)

    assert (config.replica, config.stage, config.attempt, config.pod) == (0, 1, 3, "job-r0-s1")
    assert str(config.rendezvous) == "job-r0-s0.job.default.svc:29500"
    assert config.metrics_port == names.PORT_METRICS
    assert config.output is None


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (names.ENV_PLAN, "", "PIPELINEJOB_PLAN is not set"),
        (names.ENV_STAGE, "-1", "PIPELINEJOB_STAGE: '-1' is no number"),
        (names.ENV_ATTEMPT, "one", "PIPELINEJOB_ATTEMPT: 'one' is no number"),
        (names.ENV_RENDEZVOUS, "host", "PIPELINEJOB_RENDEZVOUS: 'host' is no address; write host:port"),
        (names.ENV_RENDEZVOUS, "host:70000", "'host:70000' is no address"),
    ],
)
def test_a_wrong_environment_is_named(name: str, value: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        read_config(ENVIRONMENT | {name: value})

    assert error.value.reason == "BadEnvironment"


@pytest.mark.parametrize(("content", "reason"), [(None, "PlanUnreadable"), ("{}", "PlanInvalid"), ("{", "PlanInvalid")])
def test_a_plan_that_cannot_be_read_is_the_users_to_mend(tmp_path: Path, content: str | None, reason: str) -> None:
    file = tmp_path / "plan.json"
    if content is not None:
        file.write_text(content)

    with pytest.raises(UserError, match=r"plan\.json") as error:
        read_plan(file)

    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({"stage": 2}, "PIPELINEJOB_STAGE: 2, but the plan has pipeline: 2, whose last is 1"),
        ({"replica": 3}, "PIPELINEJOB_REPLICA: 3, but the plan has data: 3"),
        ({"tensor": 4}, "PIPELINEJOB_TENSOR_RANK: 4, but the plan has tensor: 4"),
    ],
)
def test_a_rank_that_the_plan_does_not_have_is_refused(place: dict[str, int], words: str) -> None:
    wanted, config = plan(2, 2, replicas=3, tensor=4), read_config(ENVIRONMENT)
    check_place(config, wanted)

    with pytest.raises(UserError, match=words):
        check_place(replace(config, **place), wanted)


@pytest.mark.parametrize("place", [{"stage": 2}, {"replica": 3}])
def test_a_rank_that_joins_in_memory_is_not_of_the_plan_yet(place: dict[str, int]) -> None:
    recovering = plan(2, 2, replicas=3).model_copy(update={"recovery": Recovery(in_place=True)})

    check_place(replace(read_config(ENVIRONMENT), **place), recovering)


def test_a_process_without_environment_says_so_and_ends_with_64(tmp_path: Path) -> None:
    log = tmp_path / "termination"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINEJOB_")}
    ended = subprocess.run(
        [sys.executable, "-m", "pipelinejob_trainer", "run"],
        env=clean | {names.ENV_TERMINATION_LOG: str(log)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == ExitCode.USER_ERROR
    assert Termination.model_validate_json(log.read_bytes()).reason == "BadEnvironment"
    assert ended.stderr.splitlines() == [
        "BadEnvironment: PIPELINEJOB_PLAN is not set; the operator sets it, so run the trainer through it"
    ]


class Left(Exception):  # noqa: N818
    """Stands in for the end of the process."""


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (UserError("DataNotFound", "no such file"), ExitCode.USER_ERROR, "DataNotFound"),
        (PeerLostError("gone"), ExitCode.PEER_LOST, "PeerLost"),
        (StoppedError("asked to"), ExitCode.STOPPED, "Stopped"),
        (ZeroDivisionError("division by zero"), ExitCode.FAILURE, "UnexpectedError"),
    ],
)
def test_errors_become_exit_codes_and_last_words(tmp_path: Path, monkeypatch, error, code, reason) -> None:
    codes: list[int] = []

    def leave(number: int) -> None:
        codes.append(number)
        raise Left

    monkeypatch.setattr(termination.os, "_exit", leave)

    with pytest.raises(Left):
        ProcessExit(tmp_path / "log").end_with_error(error, step=7)

    words = Termination.model_validate_json((tmp_path / "log").read_bytes())
    assert codes == [code]
    assert (words.exit_code, words.reason, words.step) == (code, reason, 7)
    assert str(error) in words.message


def test_last_words_fit_into_what_kubernetes_reads(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(termination.os, "_exit", lambda _: (_ for _ in ()).throw(Left()))

    with pytest.raises(Left):
        ProcessExit(tmp_path / "log").end_with_error(UserError("BadEntrypoint", "ü" * 9000), step=0)

    content = (tmp_path / "log").read_bytes()
    assert len(content) <= 4096
    assert Termination.model_validate_json(content).message.startswith("üüü")


@pytest.fixture
def store_port() -> int:
    return free_ports(1)[0]


def _store(port: int, *, is_master: bool = False) -> TCPStore:
    return TCPStore("127.0.0.1", port, is_master=is_master, timeout=timedelta(minutes=5), wait_for_workers=False)


def _liveness(port: int, rank: int, watched: tuple[int, ...], lost: list[int], *, silence_s: float = 5.0) -> Liveness:
    return Liveness(_store(port), rank=rank, neighbours=watched, on_lost=lost.append, silence_s=silence_s)


def test_a_rank_that_falls_silent_is_noticed_by_all(store_port: int) -> None:
    master = _store(store_port, is_master=True)
    lost: dict[int, list[int]] = {rank: [] for rank in range(3)}
    ranks = {
        rank: _liveness(store_port, rank, neighbours(rank, num_stages=3, num_replicas=1), lost[rank]) for rank in lost
    }
    for each in ranks.values():
        each.start()
    ranks[2].close()  # from outside no different from a frozen process

    wait_until(lambda: lost[0] and lost[1], "rank 2 is missed")

    assert lost == {0: [2], 1: [2], 2: []}
    del master


def test_ranks_that_beat_are_not_missed(store_port: int) -> None:
    master = _store(store_port, is_master=True)
    lost: list[int] = []
    ranks = [_liveness(store_port, rank, (1 - rank,), lost, silence_s=60.0) for rank in range(2)]
    for each in ranks:
        each.start()

    wait_until(lambda: int(master.get("0")) >= 5 and int(master.get("1")) >= 5, "five beats")
    for each in ranks:
        each.close()

    assert lost == []


@pytest.mark.parametrize(
    ("rank", "stages", "replicas", "watched"), [(0, 4, 1, (1,)), (2, 4, 1, (1, 3)), (1, 2, 2, (0, 3)), (0, 1, 1, ())]
)
def test_a_rank_watches_its_pipeline_and_the_next_replica(rank, stages, replicas, watched) -> None:
    assert neighbours(rank, num_stages=stages, num_replicas=replicas) == watched


def test_health_fails_when_progress_stops(monkeypatch) -> None:
    status = StageStatus(plan(4), stage=0, replica=0, attempt=1)
    clock = [1000.0]
    monkeypatch.setattr(stage_status.time, "monotonic", lambda: clock[0])

    assert status.unhealthy_reason() is None
    status.begin_training(step=4, loss=2.0, checkpoint_step=4)
    clock[0] += 1000
    assert status.unhealthy_reason() is None
    clock[0] += 1000
    assert status.unhealthy_reason() == "no progress for 1800 s after step 4"
    status.begin_checkpoint()
    assert status.unhealthy_reason() is None


def test_a_taken_metrics_port_is_the_users_to_mend() -> None:
    status = StageStatus(plan(4), stage=0, replica=0, attempt=1)
    server = serve(status, 0)

    with pytest.raises(UserError, match="metrics port"):
        serve(status, server.server_address[1])

    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 403),
        ({"Authorization": "Bearer someone-elses"}, 403),
        ({"Authorization": "the-operators"}, 403),
        ({"Authorization": "Bearer the-operators"}, 200),
    ],
)
def test_only_who_knows_the_pods_token_may_tell_a_stage_who_meets(headers: dict[str, str], code: int) -> None:
    heard: list[bytes] = []
    status = StageStatus(plan(4), stage=0, replica=0, attempt=1)
    server = serve(status, 0, ear=Ear(hear=heard.append, token="the-operators"))
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=HANG_S)

    connection.request("POST", "/incarnation", body=b"{}", headers=headers)

    assert connection.getresponse().status == code
    assert heard == ([b"{}"] if code == 200 else [])
    connection.close()
    server.shutdown()
    server.server_close()


def test_no_metric_has_a_step_or_a_micro_batch_for_a_label() -> None:
    text = StageStatus(plan(4), stage=0, replica=0, attempt=1).metrics().decode()
    labels = {
        pair.split("=")[0]
        for line in text.splitlines()
        if "{" in line
        for pair in line.split("{")[1].split("}")[0].split(",")
    }

    assert labels == {
        "namespace", "pipelinejob", "stage", "replica", "state", "cause", "kind", "direction", "le",
        "schedule", "layers", "device", "reason",
    }  # fmt: skip


def test_a_profile_covers_every_layer_and_the_link() -> None:
    profile = measure(plan(1, 3))

    assert [layer.name for layer in profile.layers] == ["embedding", "block-0", "block-1", "head"]
    assert profile.source is CostSource.PROFILED
    assert all(layer.optimizer_s > 0 for layer in profile.layers)
    assert [layer.output_bytes for layer in profile.layers] == [2 * 16 * 16 * 4] * 3 + [0]
    assert profile.layers[0].parameter_bytes == (256 + 16) * 16 * 4
    assert profile.layers[1].activation_bytes > 2 * 16 * 16 * 4
    assert profile.link_s > 0
    assert Profile.model_validate_json(profile.model_dump_json(by_alias=True)) == profile


def test_a_profile_tells_each_pass_of_each_layer_apart() -> None:
    """Of layers that wait: a busy machine adds to what they take, by far less than they differ."""
    waits = {"forward_ms": "20,60", "input_ms": "60,20", "weight_ms": "30,90", "layers": "2"}
    model = Model(entrypoint="pipelinejob_trainer.models.virtual:layers", arguments=waits, num_layers=3)

    _, first, last = measure(plan(3, model=model)).layers

    assert last.forward_s > 1.5 * first.forward_s > 0.015
    assert first.backward_input_s > 1.5 * last.backward_input_s > 0.01
    assert last.backward_weight_s > 1.5 * first.backward_weight_s > 0.015


def test_each_of_a_users_layers_is_measured() -> None:
    model = Model(entrypoint="layers.user_models:mlp", arguments={"width": "8"}, num_layers=5)

    assert [layer.parameter_bytes for layer in measure(plan(5, model=model)).layers] == [
        256 * 8 * 4, *[(8 * 8 + 8) * 4] * 3, (8 * 256 + 256) * 4
    ]  # fmt: skip


def _imported(module: str) -> set[str]:
    command = [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_torch_is_imported_without_its_slow_parts() -> None:
    imported = _imported("pipelinejob_trainer.training.loop")

    assert "torch" in imported
    assert not {"torch._dynamo", "torch._inductor", "sympy", "torch.distributed.checkpoint"} & imported


def test_the_command_line_can_be_loaded_without_torch() -> None:
    assert "torch" not in _imported("pipelinejob_trainer.main")
