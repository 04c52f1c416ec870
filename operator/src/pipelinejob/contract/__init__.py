"""What operator and trainer tell each other: plans, timelines, progress."""
