"""Whatever a user's code raises is the user's: layer, place, their own lines and what to do, in one sentence."""

import signal
from pathlib import Path

import pytest
import torch

from layers import faulty_models
from pipelinejob.contract.plan import Plan
from pipelinejob.spec.job import Data, Model, ScheduleName, ScheduleSpec
from pipelinejob_trainer.base.errors import LayerError, PeerLostError, UserError
from pipelinejob_trainer.base.user_code import is_theirs
from pipelinejob_trainer.checkpoint import snapshot
from pipelinejob_trainer.communication.links import Links
from pipelinejob_trainer.data.dataset import open_dataset
from pipelinejob_trainer.models.part import build_part
from pipelinejob_trainer.runtime.rank import Rank, build_rank
from pipelinejob_trainer.runtime.recorder import Recorder
from pipelinejob_trainer.runtime.runtime import Runtime
from pipelinejob_trainer.sample import Request, generate
from pipelinejob_trainer.stage.backward.saved_tensors import SavedTensors
from support.training.gangs import plan

CPU = torch.device("cpu")
FILE = faulty_models.__file__
SCHEDULES = {
    "1F1B": ScheduleSpec(name=ScheduleName.ONE_F_ONE_B, micro_batches=3, micro_batch_size=2),
    "recompute": ScheduleSpec(name=ScheduleName.ONE_F_ONE_B, micro_batches=3, micro_batch_size=2, recompute=True),
    "ZB-H1": ScheduleSpec(name=ScheduleName.ZB_H1, micro_batches=3, micro_batch_size=2),
    "PipeDream": ScheduleSpec(name=ScheduleName.PIPEDREAM, micro_batches=3, micro_batch_size=2),
}


def faulty(function: str, text: Path, schedule: str = "1F1B") -> Plan:
    model = Model(entrypoint=f"layers.faulty_models:{function}", num_layers=4)
    data = Data(paths=(str(text),), sequence_length=16)
    return plan(4, model=model, data=data, schedule=SCHEDULES[schedule], training={"clip_norm": 0})


def rank_of(wanted: Plan) -> Rank:
    return build_rank(wanted, index=0, replica=0, device=CPU)


def runtime_of(wanted: Plan) -> Runtime:
    data = open_dataset(wanted.data, schedule=wanted.schedule, replicas=1, seed=7)
    recorder = Recorder(replica=0, stage=0, device=CPU)
    return rank_of(wanted).runtime(
        links=Links(), sum_over=lambda *_: None, recorder=recorder, batches=data, update=lambda _: None
    )


FORWARD = {
    "raises_value_error": (2, "Does", "ValueError: too many moons", "in action: `raise error`"),
    "raises_keyboard_interrupt": (2, "Does", "KeyboardInterrupt", "in action: `raise error`"),
    "raises_its_own_base": (2, "Does", "OwnError: mine", "in action: `raise error`"),
    "raises_without_words": (2, "Does", "SpeechlessError", "in action: `raise error`"),
    "exits": (
        2,
        "Does",
        "SystemExit, as sys.exit and os._exit do: 0",
        "in <lambda>: `return around(Does(lambda _: sys.exit(0)))`",
    ),
    "recurses": (2, "Does", "RecursionError: maximum recursion depth exceeded", "in deeper: `return deeper(x)`"),
    "asks_for_a_gpu": (2, "Does", "", 'in <lambda>: `return around(Does(lambda x: x.to("cuda:7")))`'),
    "finds_a_nan": (2, "Does", "AssertionError: a NaN came by", "in check: `assert not torch.isnan"),
    "has_a_forward_hook_that_raises": (2, "Linear", "ZeroDivisionError: division by zero", "in <lambda>: `layer.reg"),
    "has_a_wrong_shape": (2, "Linear", "RuntimeError: ", "given float32 of shape (2, 16, 8); no line of yours was"),
    "has_a_wrong_type": (3, "Linear", "RuntimeError: ", "given float64 of shape (2, 16, 8); no line of yours was"),
    "has_a_small_table": (0, "Embedding", "IndexError: index out of range", "given int64 of shape (2, 16); no line of"),
}


@pytest.fixture
def _signals_received_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a stage's process, where a KeyboardInterrupt is no person's."""
    monkeypatch.setattr("signal.getsignal", lambda _: None)


@pytest.mark.usefixtures("_signals_received_otherwise")
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("function", FORWARD)
def test_what_a_forward_pass_raises_names_layer_place_and_the_users_line(
    text: Path, function: str, schedule: str
) -> None:
    layer, kind, words, line = FORWARD[function]

    with pytest.raises(LayerError) as caught:
        runtime_of(faulty(function, text, schedule)).run_step(4)

    sentence = str(caught.value)
    start = f"step 4, stage 0, micro-batch 0, forward pass: layer {layer} ({kind}) raised {words}"
    assert sentence.startswith(start)
    assert line in sentence
    assert FILE in sentence or "no line of yours" in sentence
    assert sentence.endswith(", a retry would end the same")
    assert caught.value.reason == "LayerRaised"


BACKWARD = {
    "raises_on_the_way_back": ("Does", "ArithmeticError: no way back", "in backward: `raise Arith"),
    "gives_a_gradient_of_a_wrong_shape": (
        "Does",
        "RuntimeError: Function WrongShapeBackBackward returned an invalid",
        "",
    ),
    "gives_too_many_gradients": ("Does", "RuntimeError: function TooManyBackBackward returned an incorrect number", ""),
    "exits_on_the_way_back": ("Does", "SystemExit, as sys.exit and os._exit do: enough", "in backward: `sys.exit"),
    "has_a_tensor_hook_that_raises": ("Does", "LookupError: hooked", "in _hook: `raise"),
    "has_a_parameter_hook_that_raises": ("Linear", "LookupError: hooked", "in _hook: `raise"),
    "has_a_gathering_hook_that_raises": ("Linear", "LookupError: hooked", "in _hook: `raise"),
    "overwrites_what_was_saved": ("Does", "", "one of the"),
}


@pytest.mark.parametrize("schedule", ["1F1B", "recompute", "ZB-H1"])
@pytest.mark.parametrize("function", BACKWARD)
def test_what_a_backward_pass_raises_names_layer_place_and_the_users_line(
    text: Path, function: str, schedule: str
) -> None:
    kind, words, line = BACKWARD[function]

    with pytest.raises(LayerError) as caught:
        runtime_of(faulty(function, text, schedule)).run_step(1)

    sentence = str(caught.value)
    start = f"step 1, stage 0, micro-batch 0, backward pass: layer 2 ({kind}) raised {words}"
    assert sentence.startswith(start)
    assert line in sentence
    assert caught.value.reason == "LayerRaised"


def test_a_graph_that_is_gone_back_through_twice_is_the_layers_that_kept_it(text: Path) -> None:
    with pytest.raises(
        LayerError, match=r"micro-batch 1, backward pass: layer 2 \(Does\) raised RuntimeError: Trying to"
    ):
        runtime_of(faulty("keeps_a_graph", text)).run_step(1)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("returns_nothing", r"micro-batch 0, layer 2 \(Does\) returned NoneType; each layer takes one tensor"),
        (
            "has_few_classes",
            r"micro-batch 0, the last layer returned logits for 9 classes, but the data have token \d+",
        ),
        ("gives_integers_for_logits", r"micro-batch 0, the last layer returned torch\.int64; it must return logits of"),
        ("detaches", r"micro-batch 0, the loss depends on no parameter .* detach\(\), torch\.no_grad\(\) or integers"),
    ],
)
@pytest.mark.parametrize("schedule", ["1F1B", "ZB-H1"])
def test_what_a_layer_returns_that_cannot_be_used_is_refused(
    text: Path, function: str, sentence: str, schedule: str
) -> None:
    with pytest.raises(LayerError, match=sentence) as caught:
        runtime_of(faulty(function, text, schedule)).run_step(1)

    assert caught.value.reason == "BadModel"


def test_an_evaluation_says_that_it_was_one(text: Path) -> None:
    with pytest.raises(
        LayerError, match=r"^evaluation, stage 0, micro-batch 0, forward pass: layer 2 \(Does\) raised Val"
    ):
        runtime_of(faulty("raises_value_error", text)).evaluate(1)


def test_sampling_names_the_layer_too(text: Path) -> None:
    wanted = faulty("raises_value_error", text)
    whole = build_part(wanted.model, wanted.data, stretches=[(0, 4)], seed=0)

    with pytest.raises(LayerError, match=r"^forward pass: layer 2 \(Does\) raised ValueError: too many moons"):
        generate(whole, Request(prompt="a", tokens=1, seed=0, temperature=0.0), context=4)


@pytest.mark.parametrize(
    ("function", "reason", "sentence"),
    [
        ("is_lazy", "LazyLayer", r"layer 2: weight has no shape before the layer's first call; .*\(nn\.Linear for"),
        ("is_on_meta", "MetaLayer", r"layer 2: weight is on torch's meta device and has no values; .*to_empty"),
        (
            "refuses_to_train",
            "LayerRaised",
            r"layer 2 \(Untrainable\) raised TypeError: mode True .* as it was set up; at",
        ),
        (
            "exits_as_it_is_made",
            "BadEntrypoint",
            r"raised SystemExit, as sys\.exit and os\._exit do: 0; at .* in exits_as_it_is_made",
        ),
        (
            "makes_layers_that_exit",
            "BadEntrypoint",
            r"making layer 3 raised SystemExit, as sys\.exit and os\._exit do: 0; at .*",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_before_the_first_step(
    text: Path, function: str, reason: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        rank_of(faulty(function, text))

    assert caught.value.reason == reason


def test_what_is_kept_of_a_layer_is_not_asked_of_its_state_dict(text: Path) -> None:
    part = rank_of(faulty("keeps_its_state_to_itself", text)).part

    assert {"parameter/layers.2.weight", "parameter/layers.2.bias"} <= snapshot.wanted(part).keys()


def test_memory_that_runs_out_is_not_called_the_users_error(text: Path) -> None:
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        runtime_of(faulty("runs_out_of_memory", text)).run_step(1)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.distributed.DistNetworkError("reset by peer"),
        PeerLostError("gone"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_machines_failure_is_not_called_the_users_error(error: Exception) -> None:
    assert not is_theirs(error)


def test_an_assertion_inside_a_gpus_kernel_is_the_users() -> None:
    assert is_theirs(torch.AcceleratorError("CUDA error: device-side assert triggered"))


def test_ctrl_c_at_a_terminal_is_not_called_the_users_error() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
    try:
        assert not is_theirs(KeyboardInterrupt())
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_assertion_of_the_runtimes_own_is_not_called_the_users_error(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = SavedTensors._pack

    def emptied(self: SavedTensors, tensor: torch.Tensor) -> object:
        box = pack(self, tensor)
        box.tensor = None
        return box

    monkeypatch.setattr(SavedTensors, "_pack", emptied)

    with pytest.raises(AssertionError, match="only nodes that do not run again have their boxes emptied"):
        runtime_of(faulty("frozen_in_front", text, "ZB-H1")).run_step(1)


def test_an_error_in_a_built_in_layer_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = runtime_of(plan(4))
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", lambda *_, **__: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        runtime.run_step(1)


def test_stages_of_which_nothing_can_be_trained_are_gone_through(text: Path) -> None:
    for function in ("frozen_in_front", "frozen_in_the_middle", "frozen_at_the_end"):
        for schedule in SCHEDULES:
            runtime_of(faulty(function, text, schedule)).run_step(1)


def test_a_layers_error_keeps_its_cause_for_the_log(text: Path) -> None:
    with pytest.raises(LayerError) as caught:
        runtime_of(faulty("raises_value_error", text)).run_step(1)

    assert isinstance(caught.value.__cause__, ValueError)
