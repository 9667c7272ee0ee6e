"""The conformance suite on implementations by others: each asked as its own documentation says."""
