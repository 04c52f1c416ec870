"""`python -m pipelinejob` is the `pipelinejob` command; it stands here for its name alone."""

from pipelinejob_operator.cli import main

main()
