"""Runs, profiles and preflights the model family `tall`.

Test_new_family.py runs it over sources that have one.
"""

import json
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from pipelinejob.costs.layers import analytic_profile
from pipelinejob.spec.job import Model
from pipelinejob_trainer.communication.gang import Gang
from pipelinejob_trainer.communication.links import Links
from pipelinejob_trainer.communication.process_groups import process_groups
from pipelinejob_trainer.process.config import Address
from pipelinejob_trainer.profile.profile import measure
from pipelinejob_trainer.runtime.rank import build_rank
from pipelinejob_trainer.runtime.reduction import sums_over_groups
from pipelinejob_trainer.training.checks import preflight
from pipelinejob_trainer.training.membership import Membership
from support.training.gangs import plan
from support.training.pipelines import Job, run_threads, run_unsplit

MODEL = Model.model_validate({"tall": {"pairs": 3, "width": 16}})


def preflighted() -> str:
    distributed.init_process_group(
        "gloo", store=distributed.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=60)
    )
    alone = Membership(
        gang=Gang(process_groups(pipeline=1, data=1), num_stages=1),
        link=lambda _: Links(),
        sum_over=sums_over_groups(()),
        rendezvous=Address(host="127.0.0.1", port=1),
        prefix="",
    )
    said = preflight.check(build_rank(plan(8, model=MODEL), index=0, replica=0, device=torch.device("cpu")), alone)
    distributed.destroy_process_group()
    return said


if __name__ == "__main__":
    with tempfile.NamedTemporaryFile() as text:
        text.write(bytes(range(256)) * 8)
        text.flush()
        job = Job(text=Path(text.name), model=MODEL, stages=3)
        split, unsplit = run_threads(job), run_unsplit(job)
    wanted = plan(4, 4, model=MODEL)
    measured = measure(wanted)
    counted = analytic_profile(wanted.model, wanted.data, wanted.schedule, wanted.training, device=wanted.device)
    errors = [
        float((split.gradients[name] - each).abs().max() / each.abs().max()) for name, each in unsplit.gradients.items()
    ]
    print(
        json.dumps(
            {
                "losses": split.losses,
                "losses_unsplit": unsplit.losses,
                "worst_error": max(errors),
                "measured_names": [layer.name for layer in measured.layers],
                "measured_parameters": [layer.parameter_bytes for layer in measured.layers],
                "counted_parameters": [layer.parameter_bytes for layer in counted.layers],
                "seconds": sum(layer.compute_s for layer in measured.layers),
                "preflight": preflighted(),
            }
        )
    )
