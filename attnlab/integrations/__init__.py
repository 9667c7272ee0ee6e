"""Adapters to other libraries. Only this package imports mechanisms by name."""
