"""What is shown of plans, schedules and runs: the values, how they are drawn, the pages. Pure."""
