"""Devices, nodes, and the network between them."""
