"""Reading and writing files: atomic writes, limits on size, and no execution of their content."""
