"""The options of the example network that the lesson shows."""

EXAMPLE = {"lambda_init": 0.2}
