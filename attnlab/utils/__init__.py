"""Small helpers that every package may import: errors, extras, escaping, tracing."""
