"""What a command is given: files, manifests, models' folders, options; read, and refused by name."""
