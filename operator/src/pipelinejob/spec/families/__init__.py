"""The built-in model families: their sizes, and all that follows from them."""
