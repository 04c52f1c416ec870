"""A job that serves: which chains it has, begins and lets go, decided purely, and brought about."""
