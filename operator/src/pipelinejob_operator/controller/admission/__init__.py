"""Who is given room: the loop that works through the line, and what it looks at."""
