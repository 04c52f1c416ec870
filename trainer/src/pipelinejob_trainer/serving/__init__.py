"""Answers requests with a model that is cut into stages."""
