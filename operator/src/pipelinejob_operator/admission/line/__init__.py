"""The line of jobs that wait: who stands where in it, by priority, age and quota."""
