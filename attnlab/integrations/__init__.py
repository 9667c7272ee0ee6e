"""attnlab inside of other systems, and their weights in attnlab. Here alone mechanisms are named."""
