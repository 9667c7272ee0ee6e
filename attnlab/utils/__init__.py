"""Helpers for every package: errors, optional dependencies, escaping, tracing."""
