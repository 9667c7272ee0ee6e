"""Comparisons of mechanisms over several seeds: plan, train, test the differences, report."""
