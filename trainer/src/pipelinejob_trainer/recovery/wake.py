"""Ends every wait of this process on gloo, at once.

torch has no call for that: aborting, shutting down or destroying a group leaves a thread that
waits on it hanging until its own timeout. But a receive that times out closes its pair, and with
it all that waits on that pair, in milliseconds (torch 2.15;
`tests/trainer/recovery/test_recovery_parts.py` holds it). So a receive with a tag that nobody
sends is posted to each peer of each group, and times out after a millisecond.
"""

import contextlib
from datetime import timedelta

import torch
from torch import distributed

_UNUSED_TAG = 0x7FFF0001
_AT_ONCE = timedelta(milliseconds=1)


def end_all_waits() -> None:
    """Close all pairs of all groups of this process; the groups are of no use afterwards."""
    posted = []
    for group in list(distributed.distributed_c10d._world.pg_map):  # noqa: SLF001 # torch lists its groups nowhere else
        for peer in range(group.size()):
            if peer != group.rank():
                with contextlib.suppress(RuntimeError):  # closed already
                    posted.append(group.recv([torch.zeros(1)], peer, _UNUSED_TAG))
    for work in posted:
        with contextlib.suppress(RuntimeError):
            work.wait(_AT_ONCE)
