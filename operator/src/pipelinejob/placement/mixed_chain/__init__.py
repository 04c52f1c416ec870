"""Chains of stages with different requests, or different nodes to go to: a bounded search."""
