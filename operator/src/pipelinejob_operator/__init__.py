"""The shell around a cluster: observes it, decides purely, applies the difference."""
