"""How a job is run: whose turn it is, which failures are retried, what recovers in place."""
