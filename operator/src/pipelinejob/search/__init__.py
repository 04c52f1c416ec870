"""Chooses what a manifest leaves open.

`best` is the entry; `space` generates the options, `step_bounds` rules out those that cannot win,
`auto` searches schedules for the best configurations, and `reasons` tells why nothing else was
taken.
"""
