"""How a job comes to its nodes: by admission, by another scheduler, by new nodes, within quota."""
