"""A file of requests, each answered once, whatever stops in between."""
