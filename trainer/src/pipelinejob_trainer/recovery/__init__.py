"""Recovery in place: what the ranks that outlive another need to go on from the same step."""
