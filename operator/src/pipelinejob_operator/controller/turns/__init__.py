"""The turns that a job's life takes, each decided purely from what was seen."""
