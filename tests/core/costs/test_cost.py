"""Costs that are counted from a model's sizes and priced by data sheets."""

import pytest

from pipelinejob.base.errors import SpecError
from pipelinejob.contract.plan import CostSource
from pipelinejob.costs.layers import LayerCost, analytic_profile, layer_names
from pipelinejob.spec.job import Data, Device, Model, ScheduleSpec, Training

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

    Beside them the 36nh bytes that it keeps and the 4nh that it gives are written and read once,
    at 3.35 TB/s.
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


def test_with_dropout_it_keeps_two_masks_more():
    """Korthikanti's 34sbh, whose stream is 2 bytes an element where ours is 4, and which both norms receive."""
    dropping = {"gpt": GPT3["gpt"] | {"dropout": 0.1}}

    assert analytic(dropping).layers[1].activation_bytes == (34 + 4) * 2048 * 12288


def test_state_takes_16_bytes_a_parameter_and_2_a_copy_in_bf16():
    h = 12288
    matrices, others = 12 * h**2 + 9 * h, 4 * h  # 9h biases go with their matrices; two norms have two vectors each

    assert analytic(GPT3, precision="fp32").layers[1].state_bytes == 16 * (matrices + others)
    assert analytic(GPT3).layers[1].state_bytes == 16 * (matrices + others) + 2 * matrices


def test_a_tensor_group_divides_all_but_the_norms():
    """With sequence parallelism the stream is divided too, Korthikanti's 34sbh/t, but for what branches gather."""
    h, n = 12288, 2048

    whole, shared = (analytic(GPT3, tensor=tensor, is_sequence_parallel=True).layers[1] for tensor in (1, 8))

    assert shared.parameter_bytes == 4 * ((12 * h**2 + 7 * h) // 8 + 2 * h + 4 * h)  # with what is added to sums
    assert whole.activation_bytes == 36 * n * h
    assert shared.activation_bytes == n * h * (2 * 2 + (36 - 2 * 2) / 8)
    assert shared.output_bytes == whole.output_bytes / 8  # each GPU sends its tokens over its own port
    assert shared.backward_weight_s == pytest.approx(whole.backward_weight_s / 8, rel=1e-4)  # those biases


def test_without_sequence_parallelism_the_stream_stays_whole():
    """Korthikanti's 10sbh + 24sbh/t, and two norms' more: the stream behind each norm and in front of it, twice."""
    h, n = 12288, 2048

    shared = analytic(GPT3, tensor=8).layers[1]

    assert shared.activation_bytes == n * h * (2 * 4 + 2 * 2 + (36 - 12) / 8)
    assert shared.output_bytes == 4 * n * h


def test_what_a_tensor_group_exchanges_is_part_of_a_pass():
    """Each branch gathers its input and scatters its sum, there and on the way back, in a ring without one member."""
    h, n, share = 12288, 2048, 7 / 8
    exchange_s = 4 * (7 * 3e-6 + share * 2 * n * h / 360e9)  # over NVLink 4, which attains 360 GB/s

    h100 = {"product": "NVIDIA-H100-80GB-HBM3", "is_sequence_parallel": True}
    whole, shared = (analytic(GPT3, tensor=tensor, **h100).layers[1] for tensor in (1, 8))

    gathered_s = 2 * share * 4 * n * h / 3.35e12  # what is kept as it was gathered, in and out of memory
    assert shared.forward_s == pytest.approx(whole.forward_s / 8 + exchange_s + gathered_s)
    assert shared.backward_input_s == pytest.approx(whole.backward_input_s / 8 + exchange_s + gathered_s)


def test_more_gpus_than_heads_of_keys_hold_some_of_them_twice():
    llama = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
    model = {"entrypoint": "a:b", "numLayers": 3, "config": llama | heads}

    block = analytic(model, tensor=16).layers[1]

    queries_and_output, keys_and_values, inner = 2 * 4096 * 4096, 2 * 4096 * 1024, 3 * 4096 * 14336
    assert block.parameter_bytes == 4 * (queries_and_output // 16 + keys_and_values // 8 + inner // 16 + 2 * 4096)


def test_a_users_own_layers_are_counted_where_a_config_gives_their_sizes():
    """A token passes two of Mixtral's eight experts; the update passes all of them."""
    sizes = {"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    more = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8}
    h, f, n, a100 = 4096, 14336, 2048, 0.64 * 312e12
    model = {"entrypoint": "a:b", "numLayers": 34, "config": sizes | more}

    profile = analytic(model, product="NVIDIA-A100-SXM4-80GB")

    block = profile.layers[1]
    products = 2 * n * (2 * h * h + 2 * h * 1024 + 8 * h + 2 * 3 * h * f)
    scores = 4 * n * n * h
    traffic = 2 * (block.activation_bytes + block.output_bytes)
    assert profile.source is CostSource.ANALYTIC
    assert [each.name for each in profile.layers[:2]] == ["embedding", "block-0"]
    assert block.parameter_bytes == 4 * (2 * h * h + 2 * h * 1024 + 8 * h + 8 * 3 * h * f + 2 * h)
    assert block.forward_s == pytest.approx((products + scores) / a100 + traffic / 2.039e12)
    assert block.optimizer_s == pytest.approx(7 * block.parameter_bytes / 2.039e12)


def test_few_tokens_wait_for_the_experts_to_be_read():
    """256 tokens do 2.4e11 operations with a block of Mixtral, but its 1.45e9 parameters are read all the same."""
    sizes = {"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    more = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8}
    model = {"entrypoint": "a:b", "numLayers": 34, "config": sizes | more}

    block = analytic(model, product="NVIDIA-A100-SXM4-80GB", sequence_length=256).layers[1]

    matrices = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 8 * 4096 + 8 * 3 * 4096 * 14336
    traffic = 2 * (block.activation_bytes + block.output_bytes)
    assert block.forward_s == pytest.approx((2 * matrices + traffic) / 2.039e12)


def test_a_config_without_its_width_is_the_authors_to_mend():
    with pytest.raises(SpecError, match=r"spec\.model\.config\.hidden_size: is missing"):
        analytic({"entrypoint": "a:b", "numLayers": 3, "config": {"model_type": "llama"}})


def test_a_known_gpu_bounds_memory_and_an_unknown_one_does_not():
    assert analytic(GPT3, product="NVIDIA-A100-SXM4-80GB").device_memory_bytes == 80_000_000_000
    assert analytic(GPT3, product="Tesla-K80").device_memory_bytes is None
    assert analytic(GPT, device=Device.CPU).device_memory_bytes is None
