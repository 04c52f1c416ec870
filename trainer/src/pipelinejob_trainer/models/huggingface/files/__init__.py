"""The folder of a Hugging Face model: its config and its tensors, read by stretches."""
