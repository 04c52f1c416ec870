"""The built-in decoder: its layers, what they are made of, and the names of its weights in transformers."""
