"""The network's shape, and what a placement is to be best at on it."""
