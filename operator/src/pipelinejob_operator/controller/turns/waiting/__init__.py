"""What a job waits for before it runs: room, quota, new nodes, or the nodes that another scheduler chooses."""
