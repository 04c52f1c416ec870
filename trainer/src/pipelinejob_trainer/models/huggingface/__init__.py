"""Any causal language model of transformers, cut into layers: its own forward runs on every stage."""
