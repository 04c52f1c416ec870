"""A job that serves: what its manifest may say, and what it becomes on a cluster."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelinejob.base import names
from pipelinejob.base.errors import InvalidManifestError
from pipelinejob.contract.progress import Phase, Progress
from pipelinejob.siting.door import plan_job
from pipelinejob.siting.request import Request
from pipelinejob.spec.serving import Batch, Mode
from pipelinejob_operator.cli.plan.document import document
from pipelinejob_operator.cli.serve import _Changes, _only_job
from pipelinejob_operator.objects.containers import stuck, trainer_ending
from pipelinejob_operator.objects.job import Rank, read_job
from pipelinejob_operator.objects.making.manifests import front_service, headless_service, stage_pod
from pipelinejob_operator.report.plan_view import PlanView
from pipelinejob_operator.validation.validate import defaulted, validate
from support.clusters.operatorworld import SETTINGS, World
from support.manifests.jobs import job, nodes, serving

GPT = {"gpt": {"numLayers": 4, "hiddenSize": 64, "numHeads": 4}}
MODEL = {"huggingFace": {"path": "/models/m"}, "numLayers": 6}


def test_a_model_a_number_of_stages_and_the_mode_are_enough() -> None:
    spec = validate(serving())
    plan = plan_job(Request(namespace="default", name="m", spec=spec)).plan

    assert plan.serving is not None
    assert plan.serving.port == 8000
    assert plan.stages[0].chunks[0][0] == 0
    assert plan.stages[-1].chunks[0][1] == 6
    assert type(plan).from_json(plan.to_json()) == plan


def test_a_model_of_a_built_in_family_is_served_from_its_checkpoint_with_a_tokenizer_or_bytes() -> None:
    spec = validate(serving(model=GPT, serving={"fromCheckpoint": True, "tokenizer": "/t"}))

    assert spec.serving is not None
    assert spec.serving.from_checkpoint
    assert plan_job(Request(namespace="default", name="m", spec=spec)).plan.prediction.serving


def test_a_run_that_trained_is_never_cleared_and_checkpoints_are_for_jobs_that_ask_for_them(
    call, tmp_path: Path
) -> None:
    file, run = tmp_path / "serve.yaml", tmp_path / "run"
    (run / "checkpoints" / "step-00000004").mkdir(parents=True)
    file.write_text(yaml.safe_dump(serving(model=GPT, serving={"fromCheckpoint": True})))

    cleared = call("serve", file, "--checkpoints", run, "--output", run)
    missing = call("serve", file, "--checkpoints", tmp_path / "nowhere")
    file.write_text(yaml.safe_dump(serving()))
    unasked = call("serve", file, "--checkpoints", run)

    assert "holds checkpoints of a run; choose another folder" in cleared.err
    assert (run / "checkpoints" / "step-00000004").is_dir()
    assert "there is no such folder" in missing.err
    assert "spec.serving.fromCheckpoint is not set" in unasked.err
    assert {cleared.code, missing.code, unasked.code} == {2}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": {"corpus": "python-stdlib"}}, "spec.data.*is of training alone"),
        ({"training": {"steps": 3}}, "spec.training.*is of training alone"),
        ({"schedule": {"name": "1F1B", "microBatches": 4}}, "spec.schedule.*is of training alone"),
        ({"evaluation": {"intervalSteps": 5}}, "spec.evaluation.*is of training alone"),
        ({"model": GPT}, "spec.model.*set serving.fromCheckpoint"),
        (
            {"model": {"entrypoint": "m:f", "numLayers": 3}, "serving": {"fromCheckpoint": True}},
            "spec.model.*entrypoint",
        ),
        ({"serving": {"tokenizer": "/t"}}, "spec.serving.tokenizer.*has its own"),
        ({"parallelism": {"pipeline": 3, "tensor": 2}}, "spec.parallelism.*leave the rest out"),
        ({"serving": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}}, "rollingUpdate.*no chain could be"),
        ({"scheduling": {"minReplicas": 1}}, "spec.scheduling.minReplicas.*is of training alone"),
        ({"device": "gpu"}, "spec.device.*must be cpu"),
        ({"serving": {"cacheTokens": 8}}, "cacheTokens"),
        ({"serving": {"port": 0}}, "spec.serving.port"),
        ({"serving": {"max": 1}}, "spec.serving.max"),
        ({"parallelism": {"pipeline": 9}}, "9 stages cannot share 6 layers"),
        ({"mode": "Answer"}, "spec.mode"),
    ],
)
def test_what_does_not_serve_is_refused_by_name(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidManifestError, match=says):
        validate(serving(**changes))


@pytest.mark.parametrize("missing", ["data", "schedule", "training"])
def test_training_needs_what_serving_may_not_have(missing: str) -> None:
    made = job()
    del made["spec"][missing]

    with pytest.raises(InvalidManifestError, match=f"spec.{missing}.*is missing, which mode Train needs"):
        validate(made)


def test_serving_is_refused_where_a_job_trains() -> None:
    with pytest.raises(InvalidManifestError, match=r"spec.serving.*goes with modes Serve and Batch only"):
        validate(job(serving={"port": 80}))


def pod(stage: int = 0) -> dict[str, Any]:
    stored = defaulted(serving(serving={"port": 9000}))
    stored["metadata"] |= {"uid": "u", "generation": 1, "labels": {names.LABEL_SERVICE: "m"}}
    read = read_job(stored)
    assert read.spec is not None
    return dict(stage_pod(read, read.spec, Rank(0, stage), attempt=1, settings=SETTINGS))


def test_its_service_leads_to_the_first_stage_alone_and_its_pods_begin_again_in_their_place() -> None:
    stored = defaulted(serving(serving={"port": 9000}))
    stored["metadata"] |= {"uid": "u", "generation": 1}
    read = read_job(stored)
    assert read.spec is not None
    front = front_service(read, read.spec)

    assert front is not None
    assert front["metadata"]["name"] == "m-serve" != headless_service(read)["metadata"]["name"]
    assert front["spec"]["ports"] == [{"name": "serve", "port": 80, "targetPort": "serve", "protocol": "TCP"}]
    assert front["spec"]["selector"].items() <= pod(0)["metadata"]["labels"].items()
    assert not front["spec"]["selector"].items() <= pod(1)["metadata"]["labels"].items()
    assert pod()["spec"]["restartPolicy"] == "Always"
    ports = {each["name"]: each["containerPort"] for each in pod()["spec"]["containers"][0]["ports"]}
    assert ports["serve"] == 9000


def test_its_first_stage_has_time_to_end_the_answers_in_work_and_the_others_need_none() -> None:
    first, second = (pod(stage)["spec"]["terminationGracePeriodSeconds"] for stage in (0, 1))

    assert first == 600 + 5 + 25
    assert second == SETTINGS.grace_s


@pytest.mark.parametrize(("code", "is_over"), [(137, False), (1, False), (0, False), (64, True)])
def test_only_a_users_error_ends_a_stage_that_serves(code: int, is_over: bool) -> None:
    waits = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
    ended = {"terminated": {"exitCode": code, "reason": "Error", "message": "why"}}
    own = {"name": "trainer", "ready": False, "restartCount": 3, "state": waits, "lastState": ended}
    made = pod() | {"status": {"phase": "Running", "containerStatuses": [own]}}

    assert (trainer_ending(made) is not None) is is_over
    assert stuck(made) is None


@pytest.mark.parametrize("lost", ["m-serve", "m-0"])
def test_a_service_that_is_gone_is_made_again_and_the_other_left_alone(lost: str) -> None:
    world = World(nodes(1, gpus=3))
    world.submit(defaulted(serving()))
    world.train()
    services = {name for kind, _, name in world.cluster.objects if kind == "Service"}
    assert services == {"m-0", "m-serve"}

    del world.cluster.objects["Service", "default", lost]
    before = len(world.cluster.writes)
    world.settle()

    made = [item["metadata"]["name"] for verb, item in world.cluster.writes[before:] if verb == "apply"]
    assert made == [lost]


GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 1000,
    "n_positions": 512,
    "n_embd": 64,
    "n_layer": 4,
    "n_head": 4,
}


def planned(**spec: Any) -> PlanView:
    read = validate(serving(**spec))
    return PlanView(plan=plan_job(Request(namespace="default", name="m", spec=read)).plan)


def test_what_is_foretold_of_it_is_what_clients_will_see_and_no_step() -> None:
    view = planned(model=MODEL | {"config": GPT2}, serving={"cacheTokens": 1024})
    loads = view.plan.prediction.serving
    shown = document(view)

    assert [each.requests for each in loads] == [1, 4, 16]
    assert loads[0].tokens_per_s < loads[1].tokens_per_s < loads[2].tokens_per_s
    assert loads[0].first_token_s < loads[1].first_token_s < loads[2].first_token_s
    assert max(loads[0].utilization) < 0.5 < max(loads[2].utilization) <= 1
    assert set(shown["prediction"]) == {"serving", "source"}
    assert not {"bubble", "backwardSeconds", "recompute"} & set(shown["stages"][0])
    assert "128 tokens" not in view.shape_line
    assert "4 groups of 16 answers" in view.shape_line


def test_layers_are_shared_for_the_most_tokens_or_for_the_earliest_first_token() -> None:
    """The head of a large vocabulary takes as long as some blocks for a token, and next to nothing for a chunk."""
    config = GPT2 | {"vocab_size": 3000, "n_layer": 12}
    model = {"huggingFace": {"path": "/models/m"}, "numLayers": 14, "config": config}
    plans = [planned(model=model, serving={"split": split}).plan for split in ("Tokens", "Prompts")]

    last = [sum(end - first for first, end in plan.stages[-1].chunks) for plan in plans]
    (tokens, prompts) = (plan.prediction.serving[-1] for plan in plans)
    assert last == [3, 5]
    assert tokens.tokens_per_s > prompts.tokens_per_s
    assert tokens.first_token_s > prompts.first_token_s


def test_a_stage_holds_its_weights_and_keys_and_values_of_its_blocks() -> None:
    small, large = (
        planned(model=MODEL | {"config": GPT2}, parallelism={"pipeline": 1}, serving={"cacheTokens": tokens})
        for tokens in (1024, 2048)
    )

    each_token = 4 * (64 + 64) * 4  # blocks, keys and values, bytes
    assert small.plan.stages[0].memory_bytes == small.plan.stages[0].parameter_bytes + 1024 * each_token
    assert large.plan.stages[0].memory_bytes - small.plan.stages[0].memory_bytes == 1024 * each_token


def test_of_layers_of_unknown_cost_only_the_utilization_is_told() -> None:
    shown = document(planned())["prediction"]["serving"]

    assert [each["firstTokenSeconds"] for each in shown] == [None] * 3
    assert min(shown[2]["utilization"]) > 0.9


def test_its_status_has_what_is_foretold_and_no_bubble() -> None:
    world = World(nodes(1, gpus=3))
    key = world.submit(defaulted(serving(model=MODEL | {"config": GPT2})))
    world.train()
    plan = world.status(key)["plan"]

    assert not {"bubble", "stepSeconds", "tokensPerSecond"} & set(plan)
    assert [each["requests"] for each in plan["serving"]] == [1, 4, 16]
    assert "bubble" not in plan["stages"][0]
    assert float(plan["serving"][2]["firstTokenSeconds"]) > float(plan["serving"][0]["firstTokenSeconds"]) > 0


BATCH = {"mode": "Batch", "serving": {"batch": {"input": "/in.jsonl", "output": "/out.jsonl"}}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mode": "Batch"}, "spec.serving.batch.*the files of requests and of answers"),
        ({"mode": "Batch", "serving": {"port": 1}}, "spec.serving.batch.*the files of requests and of answers"),
        ({"serving": BATCH["serving"]}, "spec.serving.batch.*goes with mode Batch only"),
        (BATCH | {"training": {"steps": 3}}, "spec.training.*is of training alone"),
        (BATCH | {"parallelism": {"pipeline": 3, "data": 2}}, "spec.parallelism.data.*answered by one replica"),
        (BATCH | {"serving": {"batch": {"input": "/in.jsonl"}}}, "spec.serving.batch.output"),
    ],
)
def test_a_batch_needs_its_files_and_nothing_of_training(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidManifestError, match=says):
        validate(serving(**changes))


def test_a_batch_ends_well_when_its_first_stage_does_and_the_others_go() -> None:
    world = World(nodes(1, gpus=3))
    key = world.submit(defaulted(serving(**BATCH)))
    world.train()
    pods = {each["metadata"]["name"]: each for each in world.cluster.all_pods()}
    assert {name for kind, _, name in world.cluster.objects if kind == "Service"} == {"m"}
    assert {each["spec"]["restartPolicy"] for each in pods.values()} == {"OnFailure"}

    killed = {"terminated": {"exitCode": 137, "reason": "Error"}}
    again = [{"name": "trainer", "restartCount": 1, "ready": True, "state": {"running": {}}, "lastState": killed}]
    for name in ("m-r0-s0", "m-r0-s2"):
        world.cluster.set_pod(pods[name], phase="Running", ready=True, containerStatuses=again)
    world.settle()
    assert (world.status(key)["state"], world.status(key).get("restarts", 0)) == ("Serving", 0)

    world.cluster.set_pod(pods["m-r0-s0"], phase="Succeeded", code=0)
    world.settle()
    world.cluster.finish_deletions()
    world.settle()

    assert world.status(key)["state"] == "Succeeded"
    assert "lastCheckpointStep" not in world.status(key)
    assert [each["metadata"]["name"] for each in world.cluster.all_pods()] == ["m-r0-s0"]


def test_a_batch_tells_how_much_of_its_file_is_answered() -> None:
    world = World(nodes(1, gpus=3))
    key = world.submit(defaulted(serving(**BATCH)))
    world.train()
    shares = []
    for answered in (0, 50, 119):
        said = {"replica": 0, "attempt": 1, "phase": Phase.SERVING, "step": 0}
        world.cluster.answers["m-r0-s0"] = Progress(**said, stage=0, answered=answered, requests=120)
        world.cluster.answers["m-r0-s1"] = Progress(**said, stage=1)
        world.cluster.pass_time(60)
        world.settle()
        shares.append(world.status(key)["progress"])
    (first,) = (each for each in world.cluster.all_pods() if each["metadata"]["name"] == "m-r0-s0")
    world.cluster.set_pod(first, phase="Succeeded", code=0)
    world.settle()

    assert shares == ["0%", "41%", "99%"]
    assert world.status(key)["progress"] == "100%"
    assert "step" not in world.status(key)
    assert world.condition(key, "Succeeded")["message"] == "all requests are answered"


@pytest.mark.parametrize(("code", "is_over"), [(137, False), (75, False), (64, True), (0, True)])
def test_of_a_batch_a_stages_good_end_and_a_users_error_stay(code: int, is_over: bool) -> None:
    made = pod() | {"status": {"phase": "Running", "containerStatuses": [{"name": "trainer", "restartCount": 1}]}}
    made["spec"]["restartPolicy"] = "OnFailure"
    made["status"]["containerStatuses"][0]["state"] = {"terminated": {"exitCode": code, "reason": "Error"}}

    assert (trainer_ending(made) is not None) is is_over


def test_prompts_on_the_command_line_make_a_batch_of_a_job_that_serves(call, tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(serving()))

    alone = call("serve", file, "--prompts", file)

    assert alone.code == 2
    assert "--prompts and --answers: one alone says nothing" in alone.err
    changes = _Changes(model=None, port=None, checkpoints=None, batch=(tmp_path / "in", tmp_path / "out"))
    job = _only_job(file, changes)
    assert job.spec.mode is Mode.BATCH
    assert job.spec.serving is not None
    assert job.spec.serving.batch == Batch(input=str(tmp_path / "in"), output=str(tmp_path / "out"))
