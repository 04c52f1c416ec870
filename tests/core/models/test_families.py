"""Models that a config.json describes: their parameters, to the last one, and what of a config cannot be read."""

import pytest

from pipelinejob.base.errors import SpecError
from pipelinejob.models.huggingface import decoder_of_config
from pipelinejob.spec.job import Model


def llama(**others):
    sizes = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
    return sizes | others


LLAMA_3_70B = llama(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64)
LLAMA_3_2_1B = llama(
    hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, head_dim=64, tie_word_embeddings=True
)
MIXTRAL = llama(model_type="mixtral", vocab_size=32000, num_local_experts=8, num_experts_per_tok=2)
QWEN2_7B = llama(
    model_type="qwen2",
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    vocab_size=152064,
)
QWEN3_8B = llama(model_type="qwen3", intermediate_size=12288, num_hidden_layers=36, head_dim=128, vocab_size=151936)
QWEN3_30B_A3B = llama(
    model_type="qwen3_moe",
    hidden_size=2048,
    intermediate_size=6144,
    moe_intermediate_size=768,
    num_hidden_layers=48,
    num_key_value_heads=4,
    head_dim=128,
    vocab_size=151936,
    num_experts=128,
    num_experts_per_tok=8,
    mlp_only_layers=[],
)
QWEN1_5_MOE = llama(
    model_type="qwen2_moe",
    hidden_size=2048,
    intermediate_size=5632,
    moe_intermediate_size=1408,
    shared_expert_intermediate_size=5632,
    num_hidden_layers=24,
    num_attention_heads=16,
    num_key_value_heads=16,
    vocab_size=151936,
    num_experts=60,
    num_experts_per_tok=4,
)
GEMMA_7B = llama(
    model_type="gemma",
    hidden_size=3072,
    intermediate_size=24576,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=16,
    vocab_size=256000,
)
GEMMA_2_9B = llama(
    model_type="gemma2",
    hidden_size=3584,
    num_hidden_layers=42,
    num_attention_heads=16,
    head_dim=256,
    vocab_size=256000,
)
GEMMA_3_1B = llama(
    model_type="gemma3_text",
    hidden_size=1152,
    intermediate_size=6912,
    num_hidden_layers=26,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=256,
    vocab_size=262144,
)
PHI_3_MINI = llama(
    model_type="phi3", hidden_size=3072, intermediate_size=8192, num_key_value_heads=32, vocab_size=32064
)
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257}
NEOX_20B = {
    "model_type": "gpt_neox",
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "vocab_size": 50432,
}
PHI_2 = {
    "model_type": "phi",
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 51200,
}
OPT_350M = {
    "model_type": "opt",
    "hidden_size": 1024,
    "ffn_dim": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 2048,
    "vocab_size": 50272,
    "word_embed_proj_dim": 512,
    "do_layer_norm_before": False,
}
OPT_6_7B = OPT_350M | {
    "hidden_size": 4096,
    "ffn_dim": 16384,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "word_embed_proj_dim": 4096,
    "do_layer_norm_before": True,
}
FALCON_7B = {
    "model_type": "falcon",
    "hidden_size": 4544,
    "num_hidden_layers": 32,
    "num_attention_heads": 71,
    "multi_query": True,
    "parallel_attn": True,
    "bias": False,
    "vocab_size": 65024,
}
FALCON_40B = FALCON_7B | {
    "hidden_size": 8192,
    "num_hidden_layers": 60,
    "num_attention_heads": 128,
    "num_kv_heads": 8,
    "new_decoder_architecture": True,
}
FALCON_RW_1B = FALCON_7B | {
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "multi_query": False,
    "parallel_attn": False,
    "bias": True,
    "vocab_size": 50304,
}
BLOOM = {"model_type": "bloom", "hidden_size": 14336, "n_layer": 70, "n_head": 112, "vocab_size": 250880}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "num_nextn_predict_layers": 1,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
DEEPSEEK_V2_LITE = DEEPSEEK_V3 | {
    "model_type": "deepseek_v2",
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "q_lora_rank": None,
    "vocab_size": 102400,
}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [  # as the models' weights hold them, and as transformers makes them on its meta device
        pytest.param(llama(), 8_030_261_248, id="Llama-3-8B"),
        pytest.param(LLAMA_3_70B, 70_553_706_496, id="Llama-3.1-70B"),
        pytest.param(LLAMA_3_2_1B, 1_235_814_400, id="Llama-3.2-1B"),
        pytest.param(llama(model_type="mistral", vocab_size=32000), 7_241_732_096, id="Mistral-7B"),
        pytest.param(MIXTRAL, 46_702_792_704, id="Mixtral-8x7B"),
        pytest.param(QWEN2_7B, 7_615_616_512, id="Qwen2-7B"),
        pytest.param(QWEN3_8B, 8_190_735_360, id="Qwen3-8B"),
        pytest.param(QWEN3_30B_A3B, 30_532_122_624, id="Qwen3-30B-A3B"),
        pytest.param(QWEN1_5_MOE, 14_315_784_192, id="Qwen1.5-MoE-A2.7B"),
        pytest.param(GEMMA_7B, 8_537_680_896, id="Gemma-7B"),
        pytest.param(GEMMA_2_9B, 9_241_705_984, id="Gemma-2-9B"),
        pytest.param(GEMMA_3_1B, 999_885_952, id="Gemma-3-1B"),
        pytest.param(PHI_3_MINI, 3_821_079_552, id="Phi-3-mini"),
        pytest.param(GPT2, 124_439_808, id="GPT-2"),
        pytest.param(NEOX_20B, 20_554_567_680, id="GPT-NeoX-20B"),
        pytest.param(PHI_2, 2_779_683_840, id="Phi-2"),
        pytest.param(OPT_350M, 331_196_416, id="OPT-350M"),
        pytest.param(OPT_6_7B, 6_658_473_984, id="OPT-6.7B"),
        pytest.param(FALCON_7B, 6_921_720_704, id="Falcon-7B"),
        pytest.param(FALCON_40B, 41_303_293_952, id="Falcon-40B"),
        pytest.param(FALCON_RW_1B, 1_311_625_216, id="Falcon-RW-1B"),
        pytest.param(BLOOM, 176_247_271_424, id="BLOOM"),
        pytest.param(DEEPSEEK_V2_LITE, 15_706_484_224, id="DeepSeek-V2-Lite"),
        pytest.param(DEEPSEEK_V3, 671_026_419_200, id="DeepSeek-V3"),
    ],
)
def test_parameters_are_counted_to_the_last_one(config, parameters):
    decoder = decoder_of_config(config)

    assert decoder.parameters == parameters
    assert decoder.note is None or "num_nextn_predict_layers" in decoder.note


@pytest.mark.parametrize(
    ("config", "active"),
    [(MIXTRAL, 12_879_925_248), (QWEN3_30B_A3B, 3_353_032_704), (QWEN1_5_MOE, 2_689_173_504), (llama(), 8_030_261_248)],
)
def test_of_experts_a_token_meets_only_some(config, active):
    """12.9 billion of Mixtral's, as its paper says (arXiv 2401.04088), 3.3 and 2.7 as its authors say of Qwen's."""
    assert decoder_of_config(config).active_parameters == active


def test_a_model_that_is_not_known_is_read_as_a_llama_and_says_so():
    decoder = decoder_of_config(llama(model_type="yi_next"))

    assert decoder.parameters == 8_030_261_248
    assert decoder.note == 'the model type is "yi_next"; its layers were counted as those of a llama of this size'


def test_of_a_model_of_images_and_text_the_decoder_is_read():
    text = {key: value for key, value in llama().items() if key != "model_type"}

    decoder = decoder_of_config({"model_type": "mllama", "text_config": text, "vision_config": {}})

    assert decoder.parameters == 8_030_261_248
    assert '"mllama"' in decoder.note


def test_defaults_are_those_of_the_familys_configuration_class():
    """A file leaves out what equals them: gemma ties its embeddings, heads are 256 wide, GPT-2 widens fourfold."""
    assert decoder_of_config(GEMMA_7B).is_tied
    assert not decoder_of_config(llama()).is_tied
    assert decoder_of_config(GPT2 | {"n_inner": None}).parameters == 124_439_808


def test_windows_are_those_of_the_blocks_that_have_them():
    mistral = llama(model_type="mistral", sliding_window=4096)
    gemma = GEMMA_3_1B | {"sliding_window": 512}
    qwen = QWEN2_7B | {"sliding_window": 131072, "use_sliding_window": False}

    assert {block[0].window for block in decoder_of_config(mistral).blocks} == {4096}
    assert [block[0].window for block in decoder_of_config(gemma).blocks][:7] == [512, 512, 512, 512, 512, None, 512]
    assert {block[0].window for block in decoder_of_config(qwen).blocks} == {None}


@pytest.mark.parametrize(
    ("config", "path", "says"),
    [
        ({"model_type": "llama"}, "hidden_size", "is missing; the layers of a llama cannot be counted without"),
        ({}, "hidden_size", "is missing; the layers of a model cannot be counted without"),
        (llama(intermediate_size=None), "intermediate_size", "is missing"),
        (llama(vocab_size="many"), "vocab_size", "'many' is no whole number from 1 to 16777216"),
        (llama(vocab_size=True), "vocab_size", "True is no whole number"),
        (llama(hidden_size=0), "hidden_size", "0 is no whole number"),
        (llama(num_hidden_layers=10**9), "num_hidden_layers", "is no whole number from 1 to 4094"),
        (llama(num_attention_heads=33), "num_attention_heads", "33 heads cannot share a width of 4096 equally"),
        (llama(num_key_value_heads=64), "num_key_value_heads", "64 is no whole number from 1 to 32"),
        (llama(tie_word_embeddings="yes"), "tie_word_embeddings", "'yes' is neither true nor false"),
        (MIXTRAL | {"num_experts_per_tok": 9}, "num_experts_per_tok", "9 is no whole number from 1 to 8"),
        (QWEN3_30B_A3B | {"mlp_only_layers": 3}, "mlp_only_layers", "3 is no list"),
        ({"model_type": "gpt2", "n_head": 12}, "n_embd", "is missing; the layers of a gpt2"),
        (DEEPSEEK_V3 | {"kv_lora_rank": None}, "kv_lora_rank", "is missing; the layers of a deepseek_v3"),
    ],
)
def test_what_cannot_be_read_is_named(config, path, says):
    with pytest.raises(SpecError) as caught:
        decoder_of_config(config)

    assert caught.value.path == f"spec.model.config.{path}"
    assert says in caught.value.problem


def test_a_config_makes_a_model_of_embedding_blocks_and_head():
    model = Model.of_config(llama(num_hidden_layers=2))

    assert model.num_layers == 4
    assert model.layer_sizes(128).layer_names == ("embedding", "block-0", "block-1", "head")
    assert model.tied_bytes == 0
    assert Model.of_config(LLAMA_3_2_1B).tied_bytes == 4 * 128256 * 2048
