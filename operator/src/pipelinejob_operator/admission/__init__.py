"""Room for whole gangs: what nodes have free, who may have it, and what is promised to whom."""
