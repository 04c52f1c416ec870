"""What a command shows: the console, charts of characters, forms of a result."""
