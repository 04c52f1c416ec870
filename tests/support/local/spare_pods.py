"""`pipelinejob`, but that spares are kept as pods, as on a cluster, and not as processes of the machine's own."""

from dataclasses import replace

from pipelinejob_operator.cli import main
from pipelinejob_operator.local import run
from pipelinejob_operator.local.node.spares import Spares

if __name__ == "__main__":
    run._SETTINGS = replace(run._SETTINGS, keeps_spares=False)
    Spares.keep = lambda self, count: None
    main()
