"""The options of the example network that the lesson shows."""

EXAMPLE = {"block": 2, "num_random": 1}
