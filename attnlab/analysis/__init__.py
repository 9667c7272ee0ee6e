"""Questions put to trained networks."""
