"""Texts: corpora and their baselines."""
