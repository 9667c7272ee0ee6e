"""The fast exact computations that mechanisms share."""
