"""One chunk of a rank: passes of a micro-batch through its layers, and the optimizer."""
