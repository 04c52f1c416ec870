"""Schedules as a job shop: machines, tasks, and rules that choose the next."""
