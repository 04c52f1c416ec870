"""A schedule played on a clock, with costs."""
