"""This rank among the others: process groups, links between stages, collectives, liveness."""
