"""This machine as a node: what a kubelet does, for processes."""
