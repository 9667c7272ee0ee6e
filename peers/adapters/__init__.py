"""Adapters that call the layers of other libraries as their documentation describes: one module per package."""
