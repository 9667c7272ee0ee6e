"""Reading and writing files: whole or not at all, within bounds, and never more than data."""
