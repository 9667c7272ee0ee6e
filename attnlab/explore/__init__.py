"""The page in the browser that shows the attention of every head, and its server."""
