"""A gang's pods: what each asks for as it was admitted, and where it may stand."""
