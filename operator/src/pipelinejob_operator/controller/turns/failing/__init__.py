"""A gang that fails, hangs or does not come up: why, and what follows."""
