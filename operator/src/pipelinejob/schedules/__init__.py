"""Micro-batch schedules, as data.

What lives here: the action language (`actions`), its text forms (`text`, `torch_csv`), the proof that a list can be
played (`validate`), what a list holds in memory (`memory`), why a rank waits (`causes`), and one file for each family
of schedules. `catalogue.build` makes any of them by name. Everything is pure; nothing here knows a tensor.
"""
