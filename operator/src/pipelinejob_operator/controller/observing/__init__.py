"""What one pass sees, and what is remembered of earlier ones."""
