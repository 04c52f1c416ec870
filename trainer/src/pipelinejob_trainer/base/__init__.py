"""What every room stands on: errors, and the one source of pseudo-random numbers."""
