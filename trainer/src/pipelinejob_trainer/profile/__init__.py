"""Measuring what layers, links and steps cost on this machine."""
