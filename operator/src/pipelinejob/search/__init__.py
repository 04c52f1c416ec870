"""Chooses what a manifest leaves open.

`best` is the way in; `space` says what there is to choose from, `bounds` what cannot win; `auto` finds schedules for
the best configurations, and `reasons` tells why nothing else was taken.
"""
