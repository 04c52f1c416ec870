"""Layers of a user's own: made by functions, and refused where they would be trained wrongly."""
