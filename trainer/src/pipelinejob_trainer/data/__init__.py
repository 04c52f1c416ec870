"""The training text, its order, and how far a run has read."""
