"""Prepared tokens: what is in a folder of them, how it is read, and in which order."""
