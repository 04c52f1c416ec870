"""Layouts of several replicas of a uniform chain: chain by chain, ring by ring, and all at once."""
