"""A stage's backward pass: whole or in two halves, and what autograd keeps for it."""
