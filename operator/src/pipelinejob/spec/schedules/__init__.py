"""What is written of a schedule: its type, the facts of schedules, and the rules that follow."""
