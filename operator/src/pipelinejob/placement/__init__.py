"""Placement of a job's ranks on nodes.

`place` places a job by price and by the room that it leaves, `fastest_devices` does so where
devices differ, `repair` replaces lost nodes, and `numbering` assigns ranks to pods that another
scheduler has placed. `job` compares the layouts that the rooms below propose: `uniform_chain`
(stages with equal requests, exactly), `mixed_chain` (others, by a bounded search), and `replicas`
(several chains at once). `goal` trades the step against the room left. They all count with
`capacity` and `prices`; `headroom` is the room left, and `shortfall` explains why a job does not
fit.
"""
