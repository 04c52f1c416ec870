"""The names that `transformers` gives the decoder's weights.

They are those of `state_dict()` of llama, mistral, qwen2, qwen3, mixtral and qwen3_moe in
transformers 5, which has all experts of a block in one tensor. Every tensor is one of ours, of the
same shape, so a stage can read and write its own, one by one. Which configs the decoder can be:
`pipelinejob.spec.families.decoder_config`.
"""

from collections.abc import Mapping

from pipelinejob.spec.job import DecoderModel

_OF_BLOCK = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.query.weight": "self_attn.q_proj.weight",
    "attention.query.bias": "self_attn.q_proj.bias",
    "attention.key.weight": "self_attn.k_proj.weight",
    "attention.key.bias": "self_attn.k_proj.bias",
    "attention.value.weight": "self_attn.v_proj.weight",
    "attention.value.bias": "self_attn.v_proj.bias",
    "attention.query_norm.weight": "self_attn.q_norm.weight",
    "attention.key_norm.weight": "self_attn.k_norm.weight",
    "attention.out.weight": "self_attn.o_proj.weight",
    "feed_forward_norm.weight": "post_attention_layernorm.weight",
    "feed_forward.gate.weight": "mlp.gate_proj.weight",
    "feed_forward.up.weight": "mlp.up_proj.weight",
    "feed_forward.out.weight": "mlp.down_proj.weight",
    "feed_forward.router.weight": "mlp.gate.weight",
    "feed_forward.gate_up": "mlp.experts.gate_up_proj",
    "feed_forward.down": "mlp.experts.down_proj",
}


def theirs_of_ours(model: DecoderModel) -> Mapping[str, str]:
    """Map the global name of each parameter to its name in transformers.

    A tied head is the embedding's table in both.
    """
    last = model.num_layers + 1
    has = {"bias": model.attention_bias, "query_norm": model.head_norms, "key_norm": model.head_norms}
    of_experts = {"router", "gate_up", "down"}
    of_dense = {"gate", "up", "out"}
    absent = {part for part, is_there in has.items() if not is_there}
    names = {"layers.0.token.weight": "model.embed_tokens.weight"}
    for block in range(model.num_layers):
        for ours, theirs in _OF_BLOCK.items():
            module, *parts = ours.split(".")
            others = of_dense if model.experts else of_experts
            if absent.isdisjoint(parts) and not (module == "feed_forward" and others & set(parts)):
                names[f"layers.{block + 1}.{ours}"] = f"model.layers.{block}.{theirs}"
    names[f"layers.{last}.norm.weight"] = "model.norm.weight"
    if not model.tie_embeddings:
        names[f"layers.{last}.logits.weight"] = "lm_head.weight"
    return names
