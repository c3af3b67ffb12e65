"""How good a delta is on one's own model: like the concept, true to the prompt, and without harm to the class."""
