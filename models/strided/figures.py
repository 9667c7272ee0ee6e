"""The options of the example network that the lesson shows."""

EXAMPLE = {"stride": 4}
