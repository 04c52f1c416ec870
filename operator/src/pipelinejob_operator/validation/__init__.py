"""Manifests read and judged as the API server would; the files generated from the API."""
