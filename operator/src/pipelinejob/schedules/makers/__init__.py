"""The schedules of the field, each made from its setting."""
