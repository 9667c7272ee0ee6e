"""The conformance suite on the attention layers of other libraries: ``python -m peers`` generates docs/peers.md."""
