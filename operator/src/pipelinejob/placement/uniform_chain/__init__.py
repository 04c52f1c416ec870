"""Chains of stages with equal requests: the cheapest one, by tables of what domains can hold."""
