"""Costs that are counted from a model's sizes and priced by data sheets."""

import pytest

from pipelinejob.cost import LayerCost, analytic_profile, layer_names
from pipelinejob.spec import Data, Device, Model, ScheduleSpec, Training

GPT = {"gpt": {"numLayers": 6, "hiddenSize": 128, "numHeads": 4}}
GPT3 = {"gpt": {"numLayers": 96, "hiddenSize": 12288, "numHeads": 96, "vocabularySize": 50257}}


def analytic(model, *, precision="bf16", device=Device.GPU, product="", sequence_length=2048, **others):
    return analytic_profile(
        Model.model_validate(model),
        Data(corpus="python-stdlib", sequence_length=sequence_length),
        ScheduleSpec(micro_batches=8),
        Training(steps=1, precision=precision),
        device=device,
        product=product,
        **others,
    )


def test_layers_are_named_first_to_last():
    assert layer_names(Model.model_validate(GPT))[:2] == ("embedding", "block-0")
    assert layer_names(Model.model_validate(GPT))[-2:] == ("block-5", "head")
    assert layer_names(Model(entrypoint="a:b", num_layers=3)) == ("layer-0", "layer-1", "layer-2")


def test_gpt3_has_175_billion_parameters():
    parameters = sum(each.parameter_bytes for each in analytic(GPT3).layers) / 4

    assert parameters == pytest.approx(175e9, rel=0.01)


def test_a_block_does_24_times_the_square_of_its_width_per_token():
    """24nh^2 + 4nsh operations of a forward pass (Narayanan et al. 2021), at 0.58 of an H100's 989 Tflop/s.

    Beside them the 36nh bytes that it keeps and the 4nh that it gives are written and read once, at 3.35 TB/s.
    """
    n, h = 2048, 12288
    traffic_s = 2 * 40 * n * h / 3.35e12

    block = analytic(GPT3, product="NVIDIA-H100-80GB-HBM3").layers[1]

    assert block.forward_s == pytest.approx((24 * n * h**2 + 4 * n * n * h) / (0.58 * 989e12) + traffic_s, rel=1e-9)


def test_matrices_have_two_gradients_and_attentions_scores_only_those_of_what_came_in():
    """Gradients of the block's 12h^2 elements of matrices are read and written, 8 bytes each, to add up."""
    n, h, speed, bandwidth = 2048, 12288, 0.58 * 989e12, 3.35e12
    between_s = 2 * 40 * n * h / bandwidth

    embedding, block, *_, head = analytic(GPT3, product="NVIDIA-H100-80GB-HBM3").layers

    assert embedding.backward_input_s == 0
    assert block.backward_weight_s == pytest.approx(24 * n * h**2 / speed + 8 * 12 * h**2 / bandwidth, rel=1e-3)
    assert block.backward_input_s == pytest.approx((24 * n * h**2 + 8 * n * n * h) / speed + between_s, rel=1e-9)
    assert head.backward_input_s == head.forward_s


def test_a_profile_of_whole_backward_passes_is_read_as_halves():
    sizes = {"name": "x", "parameterBytes": 1, "activationBytes": 1, "outputBytes": 1}

    cost = LayerCost.model_validate(sizes | {"forwardS": 1.0, "backwardS": 3.0})

    assert (cost.backward_input_s, cost.backward_weight_s) == (1.5, 1.5)
    assert LayerCost.model_validate(cost.dump()) == cost


def test_a_block_keeps_about_what_korthikanti_counts():
    """34sbh bytes in bf16 with dropout's masks; without them, and with an fp32 residual stream, 36sbh. fp32: 64sbh."""
    sbh = 2048 * 1 * 12288

    assert analytic(GPT3).layers[1].activation_bytes == 36 * sbh
    assert analytic(GPT3, precision="fp32").layers[1].activation_bytes == 64 * sbh


def test_a_known_gpu_bounds_memory_and_an_unknown_one_does_not():
    assert analytic(GPT3, product="NVIDIA-A100-SXM4-80GB").device_memory_bytes == 80_000_000_000
    assert analytic(GPT3, product="Tesla-K80").device_memory_bytes is None
    assert analytic(GPT, device=Device.CPU).device_memory_bytes is None
