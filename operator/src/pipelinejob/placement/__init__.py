"""Which rank goes to which node.

`place` decides it, by price and by the room that is left; `again` makes up for nodes that were lost; `why` says what is
missing where a job does not fit. The rest are their parts: what there is room for (`room`), like stages (`like`, over
`tables`), unlike ones by a bounded search (`unlike`, over `search`), several replicas (`replicas`, `whole`, `joint`),
and what a short step is weighed against (`goal`).
"""
