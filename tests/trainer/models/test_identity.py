"""What layers share: one tensor is stepped, counted and saved once, under any split; what could not be is refused."""

from pathlib import Path

import pytest
import torch

from pipelinejob.contract.plan import Plan
from pipelinejob.spec.job import Data, Model, ScheduleSpec, Training
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.checkpoint import snapshot
from pipelinejob_trainer.checkpoint.folder import CheckpointFolder
from pipelinejob_trainer.models.identity import places
from pipelinejob_trainer.models.part import Part, build_part, num_layers
from pipelinejob_trainer.optimizers.choice import make_optimizer
from pipelinejob_trainer.profile.profile import measure
from pipelinejob_trainer.runtime.layout import layout_of
from pipelinejob_trainer.sample import load_newest
from support.training.gangs import plan
from support.training.loops import train, train_plainly

DATA = Data(paths=("unused",), sequence_length=16)


def model(function: str, *, layers: int = 4, **arguments: str) -> Model:
    return Model(entrypoint=f"layers.shared_models:{function}", num_layers=layers, arguments=arguments)


def part_of(made: Model, *stretches: tuple[int, int]) -> Part:
    return build_part(made, DATA, stretches=stretches or [(0, num_layers(made))], seed=5)


def job(function: str, *layers: int, text: Path, replicas: int = 1, preflight: bool = False) -> Plan:
    schedule = ScheduleSpec(micro_batches=4, micro_batch_size=2)
    training = {"steps": 3, "clip_norm": 0.5, "preflight": preflight}
    data = Data(paths=(str(text),), sequence_length=16)
    return plan(*layers, replicas=replicas, model=model(function), data=data, schedule=schedule, training=training)


SHARING = ("two_names", "one_mask", "one_block", "one_weight")


@pytest.mark.parametrize("layers", [(4,), (2, 2)], ids=["one stage", "two stages"])
def test_what_layers_share_is_trained_as_plain_torch_does(tmp_path: Path, text: Path, layers: tuple[int, ...]) -> None:
    plans = [job(function, *layers, text=text, preflight=True) for function in SHARING]

    for wanted, run in zip(plans, train(*plans, folder=tmp_path), strict=True):
        losses, plain = train_plainly(wanted)
        shared = part_of(wanted.model).places()
        names = {
            place.name.removeprefix("layers."): name
            for name, places in shared.items()
            for place in places
            if place.tensor is not None
        }
        assert run.losses == pytest.approx(losses, rel=1e-6)
        kinds = ("parameter/", "buffer/")
        kept = {name.partition("/")[2]: tensor for name, tensor in run.kept[3].items() if name.startswith(kinds)}
        for name, tensor in plain.state_dict().items():
            torch.testing.assert_close(kept[names[name]], tensor, rtol=1e-5, atol=1e-6)
        assert kept.keys() == set(names.values())


def test_what_several_stages_saved_of_shared_tensors_is_sampled_from(tmp_path: Path, text: Path) -> None:
    wanted = job("one_weight", 2, 2, text=text)
    (run,) = train(wanted, folder=tmp_path)
    part = part_of(wanted.model)

    assert load_newest(part, CheckpointFolder(tmp_path / "plan-0")) == 3
    assert torch.equal(list(part.layers)[3].module.weight, run.kept[3]["parameter/layers.0.weight"])


def test_a_profile_counts_a_parameter_under_two_names_once(text: Path) -> None:
    profile = measure(job("two_names", 4, text=text))

    assert profile is not None
    assert [layer.parameter_bytes for layer in profile.layers] == [8192, 320, 320, 8192]  # 8 x 8 and 2 x 8, in fp32


def test_a_parameter_under_two_names_is_one_for_optimiser_and_checkpoint() -> None:
    part = part_of(model("two_names"))
    optimizer = make_optimizer(Training(steps=1), part.named_parameters().items())
    of_layer = [name for name in optimizer.parameters if name.startswith("layers.1.")]

    assert of_layer == ["layers.1.first.weight", "layers.1.norm.weight", "layers.1.norm.bias"]
    assert snapshot.take(part, optimizer, step=1).tensors.keys() == {
        f"{kind}/{name}"
        for kind in ("parameter", "first_moment", "second_moment", "updates")
        for name in optimizer.parameters
    }


def test_a_buffer_of_several_layers_is_the_first_ones_on_every_rank() -> None:
    made = model("one_mask")
    whole, last = part_of(made), part_of(made, (2, 4))

    assert list(whole.named_buffers()) == list(last.named_buffers()) == ["layers.1.mask"]
    assert whole.shared == last.shared == {"layers.1.mask": (1, 2)}
    assert layout_of(plan(2, 2, model=made)).owner_of("layers.1.mask") == 0


def test_a_module_that_stands_in_several_places_is_one_on_every_rank() -> None:
    modules, tensors = ["", ".linear"], [".linear.weight", ".linear.bias", ".mask"]

    shared = part_of(model("one_block"), (2, 4)).shared
    assert shared == dict.fromkeys([f"layers.1{name}" for name in modules + tensors], (1, 2))


def test_what_is_shared_stays_one_when_it_becomes_fp32() -> None:
    part = part_of(model("half_precision", layers=2))
    part.settle(torch.device("cpu"))
    one, other = (layer.module for layer in part.layers)

    assert other.weight is one.weight
    assert other.mask is one.mask
    assert one.mask.dtype is one.weight.dtype is torch.float32


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("the same view", "layers 1 and 2: parameter layers.1.weight and parameter layers.2.weight are two tensors on"),
        ("transposed", "layers 1 and 2: parameter layers.1.weight and parameter layers.2.weight are two tensors on"),
        ("rows", "layers 1 and 2: parameter layers.1.weight and parameter layers.2.bias are two tensors on the same"),
        ("a buffer", "layers 1 and 2: parameter layers.1.weight and buffer layers.2.copy are two tensors on the same"),
        ("one is frozen", "layers 1 and 2: parameter layers.1.weight and parameter layers.2.weight are two tensors on"),
        ("in one layer", "layer 1: parameter layers.1.weight and parameter layers.1.bias are two tensors on the same"),
        ("with itself", "layer 1: several entries of parameter bias are one, so it cannot be stepped; give it memory"),
    ],
)
@pytest.mark.parametrize("stretch", [(0, 4), (0, 1), (2, 4)])
def test_two_trained_tensors_on_one_memory_are_refused_on_every_rank(
    how: str, sentence: str, stretch: tuple[int, int]
) -> None:
    with pytest.raises(UserError) as caught:
        part_of(model("with_one_memory", how=how), stretch)

    assert caught.value.reason == "SharedMemory"
    assert sentence in str(caught.value)


@pytest.mark.parametrize("how", ["columns apart", "both are frozen"])
def test_memory_that_no_two_steps_meet_on_may_be_one(how: str) -> None:
    names = list(part_of(model("with_one_memory", how=how)).named_parameters())

    assert names[1:5] == ["layers.1.weight", "layers.1.bias", "layers.2.weight", "layers.2.bias"]


@pytest.mark.parametrize(
    "function",
    ["premade", "premade_parameter", "premade_memory", "made_on_demand", "one_after_the_other"],
)
@pytest.mark.parametrize(("stretch", "layer"), [((0, 4), 1), ((0, 2), 1), ((2, 4), 2), ((2, 3), 2)])
def test_a_function_that_gives_what_it_did_not_make_is_refused_under_every_split(
    function: str, stretch: tuple[int, int], layer: int
) -> None:
    with pytest.raises(
        UserError, match=rf"layer {layer}: its function did not make parameter linear\.weight"
    ) as caught:
        part_of(model(function), stretch)

    assert caught.value.reason == "SharedByFunctions"


@pytest.mark.parametrize("stretch", [(0, 4), (2, 4)])
def test_a_function_cannot_share_with_a_module(stretch: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=r"layer 2: its function did not make parameter linear\.weight"):
        part_of(model("mixed"), stretch)


def test_functions_that_make_their_layers_anew_are_taken_with_the_weights_of_their_first_call() -> None:
    built = part_of(model("new_each_time"))
    torch.rand(3)
    again = part_of(model("new_each_time"), (2, 3)).named_parameters()

    assert all(torch.equal(built.named_parameters()[name], tensor) for name, tensor in again.items())
    assert not built.immutable


@pytest.mark.parametrize("function", ["functions_with_one_mask", "functions_with_a_cached_mask"])
def test_functions_may_share_what_stays_as_it_is_and_each_layer_saves_its_own(function: str) -> None:
    whole, last = part_of(model(function)), part_of(model(function), (2, 3))

    assert list(whole.named_buffers()) == ["layers.1.mask", "layers.2.mask"]
    assert list(last.named_buffers()) == list(last.immutable) == ["layers.2.mask"]


def test_a_frozen_layer_may_be_one_that_was_there_before() -> None:
    assert list(part_of(model("functions_with_a_frozen_layer"), (1, 2)).immutable) == [
        "layers.1.linear.weight",
        "layers.1.linear.bias",
    ]


def test_a_parameter_that_another_stages_layer_uses_unseen_is_refused_and_on_one_stage_trained(
    tmp_path: Path, text: Path
) -> None:
    one = job("hidden_head", 4, text=text)
    (run,) = train(one, folder=tmp_path / "one")
    (refused,) = train(job("hidden_head", 2, 2, text=text), folder=tmp_path / "two")

    assert run.losses == pytest.approx(train_plainly(one)[0], rel=1e-6)
    assert refused.losses == []
    assert refused.refused is not None
    assert refused.refused[0] == "HiddenParameter"
    assert "layer 0: parameter layers.0.weight is used by another of layers 2, 3 too" in refused.refused[1]


def test_a_tensor_in_an_attribute_on_another_layers_weight_is_refused_on_every_rank() -> None:
    for stretch in ((0, 2), (2, 4)):
        with pytest.raises(UserError, match="layer 3: its attribute seen holds a tensor on the memory of parameter"):
            part_of(model("peeking"), stretch)


def test_a_trained_parameter_that_passes_change_has_one_copy_or_is_refused(tmp_path: Path, text: Path) -> None:
    one = job("renormed", 2, 2, text=text)
    (run,) = train(one, folder=tmp_path / "one")
    (refused,) = train(job("renormed", 4, text=text, replicas=2), folder=tmp_path / "two")

    assert run.losses == pytest.approx(train_plainly(one)[0], rel=1e-6)
    assert refused.losses == []
    assert refused.refused is not None
    assert refused.refused[0] == "ParameterChanged"
    assert "layer 0: parameter layers.0.weight is trained, has several copies" in refused.refused[1]


def test_what_lies_on_one_memory_under_several_names_is_saved_under_each(tmp_path: Path, text: Path) -> None:
    masks = job("functions_with_one_mask", 4, text=text)
    frozen = masks.model_copy(update={"model": model("with_one_memory", how="both are frozen")})
    of_masks, of_frozen = (set(run.kept[3]) for run in train(masks, frozen, folder=tmp_path))

    assert {"buffer/layers.1.mask", "buffer/layers.2.mask"} <= of_masks
    assert {"parameter/layers.1.weight", "parameter/layers.2.weight"} <= of_frozen


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_layer_that_keeps_its_tensors_from_python_is_refused() -> None:
    scripted = torch.nn.Sequential(torch.jit.script(torch.nn.Linear(2, 2)))

    with pytest.raises(UserError, match=r"layer 3, 0 is compiled by torch\.jit") as caught:
        list(places(3, scripted))
    assert caught.value.reason == "ScriptedLayer"
