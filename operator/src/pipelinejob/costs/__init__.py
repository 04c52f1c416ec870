"""What a layer, a stage and a message cost, in seconds and bytes."""
