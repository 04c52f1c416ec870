"""`pipelinejob data prepare`: documents made into shards of tokens that a job trains on."""
