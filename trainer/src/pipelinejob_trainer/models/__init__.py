"""The layers of a model, built-in or a user's own."""
