"""This process by itself: environment, signals, output, metrics, HTTP server, termination."""
