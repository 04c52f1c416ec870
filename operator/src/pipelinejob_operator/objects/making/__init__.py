"""The objects that are made for a job: its config map, service and pods."""
