"""What a checkpoint holds, how it is stored, and how a gang saves and resumes."""
