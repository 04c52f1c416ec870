"""The pure core: what a PipelineJob is, what it costs, and the plan that follows. No I/O, no clock, no randomness."""
