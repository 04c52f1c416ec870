"""The cluster protocol over a Kubernetes API server."""
