"""One step of a shrunk model against a single process: agrees where it should, and finds what is wrong."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed

from layers import odd_layers
from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import ExitCode
from pipelinejob.spec.job import GptModel, Model, ScheduleName, ScheduleSpec
from pipelinejob.spec.workload import HuggingFaceModel, Weights
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.communication.gang import Gang
from pipelinejob_trainer.communication.links import Links
from pipelinejob_trainer.communication.process_groups import process_groups
from pipelinejob_trainer.models.part import Part
from pipelinejob_trainer.process.config import Address
from pipelinejob_trainer.runtime.rank import build_rank
from pipelinejob_trainer.runtime.reduction import sums_over_groups
from pipelinejob_trainer.stage.stage import Stage
from pipelinejob_trainer.training.checks import preflight
from pipelinejob_trainer.training.membership import Membership
from support.training import gangs
from support.training.gangs import plan

TESTS = Path(__file__).parents[2]
CPU = torch.device("cpu")
LARGE = Model(gpt=GptModel(num_layers=2, hidden_size=64, num_heads=8, vocabulary_size=300, dropout=0.1))


@pytest.fixture(scope="module")
def membership() -> Iterator[Membership]:
    """A gang of one."""
    distributed.init_process_group(
        "gloo", store=distributed.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=30)
    )
    yield Membership(
        gang=Gang(process_groups(pipeline=1, data=1), num_stages=1),
        link=lambda _: Links(),
        sum_over=sums_over_groups(()),
        rendezvous=Address(host="127.0.0.1", port=1),
        prefix="",
    )
    distributed.destroy_process_group()


def one_rank(name: ScheduleName = ScheduleName.ZB_H1, *, model: Model = LARGE, clip_norm: float = 0.0) -> Plan:
    schedule = ScheduleSpec(name=name, micro_batches=4, micro_batch_size=2)
    return plan(4 if model is LARGE else 3, model=model, schedule=schedule, training={"clip_norm": clip_norm})


def check(wanted: Plan, membership: Membership) -> str:
    return preflight.check(build_rank(wanted, index=0, replica=0, device=CPU), membership)


@pytest.mark.parametrize("name", [ScheduleName.GPIPE, ScheduleName.ZB_H1, ScheduleName.PIPEDREAM])
def test_a_schedule_that_trains_as_written_passes(membership: Membership, name: ScheduleName) -> None:
    # One rank adds up in the order of the plain run; PipeDream's weights of 1 and 1/4 round
    # nothing.
    assert check(one_rank(name), membership).endswith("agree with a single process's (bit for bit)")


def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    backward_weight = Stage.backward_weight
    monkeypatch.setattr(Stage, "backward_weight", lambda stage, k: None if k == 1 else backward_weight(stage, k))


def _double(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Stage.forward

    def heavier(stage: Stage, k: int, *tensors: torch.Tensor, loss_weight: float, **others: object) -> torch.Tensor:
        return forward(stage, k, *tensors, loss_weight=loss_weight * (2 if k == 1 else 1), **others)

    monkeypatch.setattr(Stage, "forward", heavier)


@pytest.mark.parametrize("fault", [_forget, _double])
def test_one_micro_batch_wrong_in_one_pass_is_found_and_named(
    membership: Membership, monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None]
) -> None:
    fault(monkeypatch)

    with pytest.raises(UserError, match=r"stage 0 of replica 0: the gradient of layers\.\d+\.\S+ differs by") as caught:
        check(one_rank(), membership)
    assert caught.value.reason == "PreflightFailed"


def test_a_gradient_that_is_no_number_is_found(membership: Membership) -> None:
    with pytest.raises(UserError, match="differs by nan"):
        check(one_rank(model=Model(entrypoint="layers.user_models:makes_nan", num_layers=3)), membership)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_folders_model_is_played_narrow_and_never_made_whole(
    membership: Membership, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[family](
        vocab_size=300, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, **({"output_router_logits": True} if family == "mixtral" else {}),
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    folder = HuggingFaceModel(path=str(tmp_path), weights=Weights.RANDOM)
    model = Model(hugging_face=folder, num_layers=config.num_hidden_layers + 2)
    wanted = plan(6, model=model, schedule=ScheduleSpec(name=ScheduleName.ZB_H1, micro_batches=3, micro_batch_size=2))
    rank = build_rank(wanted, index=0, replica=0, device=CPU)
    sizes: list[int] = []
    made = preflight.build_part

    def measured(*given: object, **named: object) -> Part:
        part = made(*given, **named)
        sizes.append(sum(each.numel() for each in part.named_parameters().values()))
        return part

    monkeypatch.setattr(preflight, "build_part", measured)

    assert preflight.check(rank, membership).endswith("agree with a single process's (bit for bit)")

    (narrow,) = sizes
    assert narrow < 0.1 * sum(each.numel() for each in rank.part.named_parameters().values())


def test_weights_buffers_gradients_and_random_state_are_as_before(membership: Membership) -> None:
    rank = build_rank(one_rank(), index=0, replica=0, device=CPU)
    before = {name: each.clone() for name, each in rank.part.named_parameters().items()}
    torch.manual_seed(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)

    preflight.check(rank, membership)

    assert torch.equal(torch.rand(3), drawn)
    assert all(torch.equal(each, before[name]) for name, each in rank.part.named_parameters().items())
    assert all(each.grad is None for each in rank.part.named_parameters().values())


@pytest.mark.parametrize(
    "kind", ["Normed", "OldSpectral", "Average", "InPlace", "Checkpointed", "FusedLinear", "Complex"]
)
@pytest.mark.parametrize("name", [ScheduleName.ONE_F_ONE_B, ScheduleName.ZB_H1, ScheduleName.PIPEDREAM])
def test_layers_with_peoples_habits_pass_and_keep_no_trace_where_they_are_made_once(
    membership: Membership, monkeypatch: pytest.MonkeyPatch, kind: str, name: ScheduleName
) -> None:
    arguments = {"kind": kind, "first": "shift"}
    made = odd_layers.layers(**arguments)
    monkeypatch.setattr(odd_layers, "layers", lambda **_: made)
    model = Model(entrypoint="layers.odd_layers:layers", num_layers=7, arguments=arguments)
    schedule = ScheduleSpec(name=name, micro_batches=4, micro_batch_size=2)
    rank = build_rank(
        plan(7, model=model, schedule=schedule, training={"clip_norm": 0.0}), index=0, replica=0, device=CPU
    )
    buffers = [each for layer in made for each in layer.buffers()]
    before = [each.clone() for each in buffers]

    assert preflight.check(rank, membership).startswith("preflight: one step's gradients agree")
    assert all(map(torch.equal, buffers, before))
    assert [getattr(layer, "number", 0) for layer in made] == [0] * 7
    assert all(each.grad is None for layer in made for each in layer.parameters())


def test_a_plan_is_shrunk_in_width_and_length_and_keeps_its_layers_and_its_schedule() -> None:
    schedule = ScheduleSpec(name=ScheduleName.ZB_H1, micro_batches=6, micro_batch_size=8, batch_size=43)
    large = plan(2, 2, model=LARGE, schedule=schedule)
    small = preflight.shrunk(large)

    assert small.model.gpt is not None
    assert (small.model.gpt.num_layers, small.model.gpt.hidden_size, small.model.gpt.dropout) == (2, 16, 0.1)
    assert small.schedule.micro_batch_sizes == (2, 2, 2, 2, 2, 1)
    assert (small.cuts, small.schedule.name) == (large.cuts, ScheduleName.ZB_H1)


@pytest.mark.usefixtures("membership")
@pytest.mark.parametrize(
    ("how", "name", "sentence"),
    [
        ("ddp", ScheduleName.ONE_F_ONE_B, "layer 1 is wrapped in DistributedDataParallel"),
        ("fsdp", ScheduleName.ZB_H1, "layer 1, 0 is wrapped in FSDPModule"),
        ("compile", ScheduleName.ZB_H1, "layer 1 is compiled by torch.compile, whose backward pass is one piece"),
        ("compile the inner one", ScheduleName.ZB_H1, "layer 1, 0 is compiled"),
        ("sparse", ScheduleName.ONE_F_ONE_B, r"layer 1, 0 is Embedding\(sparse=True\); its gradients are sparse, and"),
    ],
)
def test_layers_that_would_be_trained_wrongly_are_refused(how: str, name: ScheduleName, sentence: str) -> None:
    model = Model(entrypoint="layers.user_models:wrapped", num_layers=3, arguments={"how": how})

    with pytest.raises(UserError, match=sentence):
        build_rank(one_rank(name, model=model), index=0, replica=0, device=CPU)


@pytest.mark.parametrize("how", ["compile", "compile the inner one"])
def test_compiled_layers_are_taken_where_backward_passes_are_whole(how: str) -> None:
    model = Model(entrypoint="layers.user_models:wrapped", num_layers=3, arguments={"how": how})

    build_rank(one_rank(ScheduleName.ONE_F_ONE_B, model=model), index=0, replica=0, device=CPU)


@pytest.mark.xdist_group("gangs")
def test_layers_that_draw_what_no_seed_sets_end_every_rank_with_one_sentence(tmp_path: Path) -> None:
    model = Model(entrypoint="layers.user_models:moody", num_layers=3)
    wanted = plan(1, 2, model=model, training={"preflight": True})
    gang = gangs.Gang(tmp_path / "gang", wanted, environment={"PYTHONPATH": str(TESTS)}).start()

    codes = gang.wait()

    assert set(codes.values()) == {ExitCode.USER_ERROR}
    words = [gang.termination(pod) for pod in codes]
    assert {each.reason for each in words} == {"PreflightFailed"}
    assert len({each.message for each in words}) == 1
    assert "draw random numbers that no seed sets" in words[0].message


@pytest.mark.xdist_group("gangs")
def test_a_preflight_changes_nothing_of_the_training_after_it(tmp_path: Path) -> None:
    runs = []
    for with_preflight in (True, False):
        wanted = plan(2, 2, replicas=2, model=LARGE, training={"preflight": with_preflight, "steps": 3})
        runs.append(gangs.Gang(tmp_path / str(with_preflight), wanted).start().finish())

    assert "preflight: one step's gradients agree" in runs[0].logs()
    assert "preflight" not in runs[1].logs()
    assert runs[0].losses() == runs[1].losses()
