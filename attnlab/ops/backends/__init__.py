"""The ways in which softmax attention can be computed exactly."""
