"""The options of the example network that the lesson shows."""

EXAMPLE = {"window_size": 6}
