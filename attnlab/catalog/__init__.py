"""The mechanisms that exist: found, read, described and created."""
