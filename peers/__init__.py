"""The conformance suite on the attention layers of others: ``python -m peers`` makes docs/peers.md."""
