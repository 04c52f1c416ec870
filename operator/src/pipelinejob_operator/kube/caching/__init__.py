"""What the API server holds, kept true in memory, and what follows from its changes."""
