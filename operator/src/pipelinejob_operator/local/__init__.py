"""The cluster protocol over this machine's processes, and a run on it."""
