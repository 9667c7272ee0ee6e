"""The example network that the lesson shows: four heads that share one key and one value per token."""

EXAMPLE = {"num_heads": 4}
