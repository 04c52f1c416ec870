"""One rank: the program made from its list of actions, and what a step needs to play it."""
