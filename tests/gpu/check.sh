#!/bin/sh
# What only a GPU shows of a stage, in at most 8 minutes: ./tests/gpu/check.sh [FIGURES.json]
# Without a GPU the same runs on processors, in small, and what needs one is skipped by name.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
PYTHONPATH=operator/src:trainer/src:tests exec timeout 480 "$python" tests/gpu/check.py "$@"
