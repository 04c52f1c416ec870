"""One pass over a job: observe, decide purely, apply. Knows the cluster by its protocol alone."""
