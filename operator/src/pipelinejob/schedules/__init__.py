"""Micro-batch schedules, as data.

`families` describes each schedule: its name, its maker and its facts; `makers` and `job_shop` make
the lists. A list is written in the action language (`actions`, as text in `text` and `torch_csv`),
proven (`validate`, `deadlock`), and played (`timetable`); `memory` is what it holds, `causes` why
its ranks wait. Everything is pure; nothing here knows a tensor.
"""
