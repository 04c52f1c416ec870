"""The operator's process: settings, kopf under supervision, work queue, leader election, metrics."""
