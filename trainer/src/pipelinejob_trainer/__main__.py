"""`python -m pipelinejob_trainer`."""

from pipelinejob_trainer.main import main

main()
