"""Serving as decisions and numbers: who is in which pass, which blocks of the cache, and what it will take."""
