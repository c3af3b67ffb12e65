"""Learning a delta and its words: the loop, and what it needs."""
