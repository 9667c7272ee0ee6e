"""The mechanisms: one folder each, found by its presence. How to add one: README.md beside this file."""

if __name__ == "models":
    import attnlab.catalog.short_name  # noqa: F401  the same modules under both names
