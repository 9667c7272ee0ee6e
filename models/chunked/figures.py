"""The options of the example network that the lesson shows."""

EXAMPLE = {"chunk_size": 8}
