"""What is told of a run when it has ended: summary, page, trace. Pure, but for the writer of results."""
