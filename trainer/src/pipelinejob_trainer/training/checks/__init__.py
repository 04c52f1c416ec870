"""What ranks check of one another and of their layers, before the first step and in each."""
