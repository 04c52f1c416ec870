"""A checkpoint as others read it: safetensors, config and tokenizer of transformers, or adapters of PEFT."""
