"""How parameters follow their gradients: rules, parameter groups, and learning rates."""
