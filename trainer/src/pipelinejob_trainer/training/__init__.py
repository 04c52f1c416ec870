"""A run from a plan to its last step: meet the gang, resume, step, evaluate, save."""
