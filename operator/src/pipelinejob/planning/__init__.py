"""Partition, schedule and prediction of one job: the plan."""
