"""What a micro-batch loses: cross entropy or a loss of the user's, what counts of it, what layers add."""
